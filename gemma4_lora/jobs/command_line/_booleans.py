"""Flags of a config without a value, as `--cfg.text_only`: for booleans alone."""

from collections.abc import Sequence
import dataclasses
import inspect
from typing import Any

from kauldron import konfig

from gemma4_lora.jobs.command_line import _arguments
from gemma4_lora.jobs.command_line import _config_file

# May stand for any type, as what is unknown.
_ANY = (None, dataclasses.MISSING, inspect.Parameter.empty)


def check(flag: Any, argv: Sequence[str]) -> None:
  """Raises for `--cfg.seed`, which would train with the seed True.

  Args:
    flag: The flag of the config, parsed.
    argv: Arguments of the command.

  Raises:
    ConfigError: Such a flag sets what is no boolean.
  """
  names = _arguments.without_value(argv, name=flag.name)
  if not names:
    return
  # As the file has it, without what the command line changes.
  cfg = flag.parser.parse(flag.config_filename).get_module_config()
  for name in names:
    value = _value(cfg, name)
    if not isinstance(value, bool) and not any(value is x for x in _ANY):
      shown = value if isinstance(value, (int, float, str)) else '…'
      raise _config_file.ConfigError(
          f'--{flag.name}.{name} lacks a value: write'
          f' --{flag.name}.{name}={shown}, or another one. Without "=" it sets'
          ' a boolean.'
      )


def _value(cfg: Any, name: str) -> Any:
  """Returns a field's value, or its default; None if neither is known."""
  node, last = _config_file.node_of(cfg, name)
  if isinstance(node, (list, tuple)):
    index = int(last) if last.isdigit() else len(node)
    return node[index] if index < len(node) else None
  if not isinstance(node, konfig.ConfigDict):
    return None
  if last in node:
    return node[last]
  qualname = node.get('__qualname__')
  return (_config_file.fields(qualname) or {}).get(last) if qualname else None
