"""From a `g4.nn.LoRA` and its leaves to a PEFT folder."""

from collections.abc import Mapping
from collections.abc import Sequence
import json
from typing import Any
from typing import Literal

from absl import logging
from etils import epath
import jax
import numpy as np
import safetensors.numpy

from gemma4_lora import _trees
from gemma4_lora import variants
from gemma4_lora.gemma4 import _hf_names
from gemma4_lora.gemma4 import _linears
from gemma4_lora.hf import _model_loras
from gemma4_lora.host.folders import _new_folder
from gemma4_lora.nn import _lora
from gemma4_lora.peft import _adapter_config
from gemma4_lora.peft import _branch
from gemma4_lora.peft import _expert_tensors
from gemma4_lora.peft import _full_tensors
from gemma4_lora.peft import _tensors
from gemma4_lora.peft import _write_config
from gemma4_lora.servers import _forms
from gemma4_lora.servers import _lint
from gemma4_lora.servers import _server
from gemma4_lora.servers import _servers
from gemma4_lora.targets import _full

_WHO = 'g4.hf.save_peft'


def save_peft(
    path: epath.PathLike,
    *,
    model: _lora.LoRA,
    params: Mapping[str, Any],
    base_model_class: Literal[
        'Gemma4ForConditionalGeneration', 'Gemma4ForCausalLM'
    ] = 'Gemma4ForConditionalGeneration',
    experts: Literal['stacked', 'per_expert'] | None = None,
    server: Literal['peft', 'vllm', 'sglang', 'llama.cpp'] = 'peft',
    overwrite: bool = False,
    base_model_name_or_path: str | None = None,
) -> None:
  """Saves LoRA as PEFT does: `adapter_config.json`, `adapter_model.safetensors`.

  ```python
  g4.hf.save_peft('my_lora', model=model, params=state.params)
  ```

  and, with transformers and PEFT:

  ```python
  base = AutoModelForImageTextToText.from_pretrained('google/gemma-4-E2B-it')
  model = PeftModel.from_pretrained(base, 'my_lora')
  ```

  Names, shapes, ranks, alphas and methods are PEFT's, in float32.
  `target_modules` names exactly the adapted modules: short names would also
  match the clipped linears of the towers, which PEFT refuses.

  The folder appears under its name once it is complete.

  Args:
    path: Folder to make, here or in a bucket.
    model: A `g4.nn.LoRA`.
    params: Its parameters, nested; the LoRA leaves are enough.
    base_model_class: Class of transformers that will load it: the one of
      AutoModel, or the one of text alone. They name modules differently.
    experts: Layout of routed experts: PEFT's own, or one module per expert and
      projection, which vLLM takes and PEFT does not. Default: the server's.
    server: What will read it. The numbers are the same for all, but some read no
      `alpha_pattern`, `rank_pattern` or `use_rslora`: then scales go into B, and
      ranks are filled with zeros. See `gemma4_lora/servers`.
    overwrite: Whether to replace the folder if there is one.
    base_model_name_or_path: Name of the base model, for the config.

  Raises:
    FileExistsError: `path` exists, and `overwrite` is False.
    ValueError: `model` has no LoRA, `params` is not its parameters or has NaN, or
      what it adapts does not exist in `base_model_class`, or the server refuses
      it or would answer with other numbers.
  """
  row = _check_arguments(model, base_model_class, experts, server)
  path = _new_folder.check_free(path, overwrite=overwrite, who=_WHO)
  loras, use_rslora = _forms.formed(
      list(_model_loras.row_loras(model, params, who=_WHO)),
      row,
      use_rslora=model.use_rslora,
  )
  branches, ranks = _branches(
      model, loras, experts or row.experts, use_rslora=use_rslora
  )
  branches = _forms.with_values(branches, row, model.config)
  full = _full_tensors.to_modules(
      _copies(model, params), base_model_class=base_model_class, who=_WHO
  )
  config = _write_config.config(
      branches,
      _linears.linears(model.config),
      base_model_class=base_model_class,
      names_alone=row.names_alone,
      use_rslora=use_rslora,
      **variants.arguments(model.variant),
      lora_dropout=_dropout(model, branches),
      init_lora_weights=_model_loras.saved_init(model, who=_WHO),
      base_model_name_or_path=base_model_name_or_path,
      modules_to_save=[n for n in full.weights if n != _full_tensors.HEAD]
      or None,
      ensure_weight_tying=full.is_tied,
  )
  lora_tensors = _named(branches, base_model_class)
  _check_server(row, config, branches, full, model)
  tensors = lora_tensors | {
      _tensors.full_key(name): weight for name, weight in full.weights.items()
  }
  metadata = {'format': 'pt'}
  if ranks:
    metadata[_expert_tensors.METADATA] = json.dumps(ranks, sort_keys=True)
  with _new_folder.new_folder(path, overwrite=overwrite, who=_WHO) as folder:
    (folder / _adapter_config.NAME).write_text(
        json.dumps(config, indent=2, sort_keys=True)
    )
    safetensors.numpy.save_file(tensors, folder / _tensors.NAME, metadata)


def _copies(
    model: _lora.LoRA, params: Mapping[str, Any]
) -> list[tuple[_full.Saved, np.ndarray]]:
  """Returns the parts that are trained in full, on the host."""
  copies = []
  for part in model.saved:
    value = np.asarray(jax.device_get(_trees.get(params, part.path)))
    value = value.astype(np.float32)
    if not np.isfinite(value).all():
      raise ValueError(f'{_WHO}: {part.path} has NaN or infinite values.')
    copies.append((part, value))
  return copies


def _branches(
    model: _lora.LoRA,
    loras: Sequence[_branch.RowLoRA],
    experts: str,
    *,
    use_rslora: bool,
) -> tuple[list[_branch.Branch], dict[str, list[int]]]:
  """Returns the branches, and the metadata for them."""
  branches, ranks = [], {}
  stacked: dict[Any, dict[str, _branch.RowLoRA]] = {}
  for lora in loras:
    row = lora.row
    if not row.is_routed:
      branches += _branch.from_row(lora, model.variant)
    elif experts == 'per_expert':
      branches += _expert_tensors.to_per_expert(lora)
    else:
      stacked.setdefault(row.layer, {})[row.projection] = lora
  for layer in stacked.values():
    new, new_ranks = _expert_tensors.to_stacked(layer, use_rslora=use_rslora)
    branches += new
    ranks |= new_ranks
  return branches, ranks


def _named(
    branches: Sequence[_branch.Branch], base_model_class: str
) -> dict[str, np.ndarray]:
  """Returns the tensors by their names in the file."""
  tensors = {}
  for branch in branches:
    prefix = _hf_names.prefix(base_model_class, branch.tower)
    if prefix is None:
      raise ValueError(
          f'{_WHO}: {base_model_class} has no {branch.tower} tower, which the'
          ' model adapts. Save it for'
          ' base_model_class="Gemma4ForConditionalGeneration".'
      )
    for name, array in branch.leaves.items():
      # The format has no strides.
      tensors[_tensors.key(prefix + branch.module, name)] = (
          np.ascontiguousarray(array)
      )
  return tensors


def _dropout(model: _lora.LoRA, branches: Sequence[_branch.Branch]) -> float:
  """Returns PEFT's only dropout rate."""
  rate = model.dropout
  stacked = any(branch.is_parameter for branch in branches)
  others = {linear.dropout for linear in model.adapted} - {rate}
  if stacked and rate:
    logging.warning(
        '%s: dropout=%s is left out: PEFT has none on stacked experts.',
        _WHO,
        rate,
    )
    return 0.0
  if others:
    logging.warning(
        '%s: PEFT has one dropout for all: %s. Left out: %s.',
        _WHO,
        rate,
        sorted(others),
    )
  return rate


def _check_server(
    server: _server.Server,
    config: Mapping[str, Any],
    branches: Sequence[_branch.Branch],
    full: _full_tensors.Modules,
    model: _lora.LoRA,
) -> None:
  """Raises if the server would refuse the folder, or answer otherwise."""
  found = _lint.of_config(
      config,
      server,
      names=[x.module for x in branches],
      full=full.weights,
      model_config=model.config,
  )
  _server.check(server, found, who=_WHO)


def _check_arguments(
    model: Any, base_model_class: str, experts: str | None, server: str
) -> _server.Server:
  if not isinstance(model, _lora.LoRA):
    raise ValueError(
        f'{_WHO}(model=...) takes a g4.nn.LoRA. Got: {type(model).__name__}'
    )
  servers = {k: v for k, v in _servers.SERVERS.items() if v.is_peft}
  for name, value, choices in (
      ('base_model_class', base_model_class, _hf_names.CLASSES),
      ('experts', experts, ('stacked', 'per_expert', None)),
      ('server', server, tuple(servers)),
  ):
    if value not in choices:
      raise ValueError(
          f'{_WHO}({name}=...) takes one of {list(choices)}. Got: {value!r}'
      )
  return servers[server]
