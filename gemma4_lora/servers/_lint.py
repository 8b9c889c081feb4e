"""Says what a server does with a PEFT folder, before it is tried there."""

from collections.abc import Collection
from collections.abc import Mapping
import json
from typing import Any

from etils import epath

from gemma4_lora.gemma4 import _upstream
from gemma4_lora.peft import _adapter_config
from gemma4_lora.peft import _read_folder
from gemma4_lora.servers import _adapter
from gemma4_lora.servers import _server
from gemma4_lora.servers import _servers


def of_folder(
    path: epath.PathLike,
    server: _server.Server,
    *,
    model_config: _upstream.TransformerConfig,
    who: str,
) -> list[_server.Finding]:
  """Returns what a server does with a PEFT folder.

  Args:
    path: The folder.
    server: The server.
    model_config: Config of the model that it is for.
    who: What asks, for messages.

  Raises:
    FileNotFoundError: There is no such folder or file.
    ValueError: It is damaged, or no LoRA.
  """
  config, tensors = _read_folder.read_raw(path, who=who)
  return _findings(
      server,
      config,
      names=tensors.modules,
      full=tensors.full,
      model_config=model_config,
  )


def report(
    path: epath.PathLike,
    name: str,
    *,
    model_config: _upstream.TransformerConfig,
    who: str,
) -> tuple[str, bool]:
  """Returns the same as text for people, and whether it is served as trained.

  Args:
    path: The folder.
    name: The server's.
    model_config: Config of the model that it is for.
    who: What asks, for messages.
  """
  server = _servers.SERVERS[name]
  found = of_folder(path, server, model_config=model_config, who=who)
  problems = [x for x in found if x.is_problem]
  start = f'{name} ({server.version})'
  if problems:
    said = f'{start} does not serve it as trained.'
  elif server.is_peft:
    said = f'{start} serves it as trained.'
  else:
    said = (
        f'{start} can serve it, from a folder of its own: gemma4_lora export'
        f' --for={name}.'
    )
  return '\n'.join([said, *(f'- {x.kind}: {x.text}.' for x in found)]), not (
      problems
  )


def of_config(
    fields: Mapping[str, Any],
    server: _server.Server,
    *,
    names: Collection[str],
    full: Collection[str],
    model_config: _upstream.TransformerConfig,
) -> list[_server.Finding]:
  """Returns the same for a folder that is not written yet.

  Args:
    fields: What `adapter_config.json` will have.
    server: The server.
    names: Names of the modules, with their prefixes.
    full: Names of what is trained in full.
    model_config: Config of the model that it is for.
  """
  config = _adapter_config.read(
      epath.Path(_adapter_config.NAME), json.dumps(fields).encode()
  )
  return _findings(
      server,
      config,
      names=names,
      full=full,
      model_config=model_config,
  )


def _findings(
    server: _server.Server,
    config: _adapter_config.PeftConfig,
    *,
    names: Collection[str],
    full: Collection[str],
    model_config: _upstream.TransformerConfig,
) -> list[_server.Finding]:
  adapter = _adapter.Adapter(
      config=config,
      names=tuple(names),
      full=tuple(full),
      model_config=model_config,
  )
  return list(server.rules(adapter))
