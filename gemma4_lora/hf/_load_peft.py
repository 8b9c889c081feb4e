"""From a PEFT folder to a `g4.nn.LoRA` and its leaves."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import json
import os
import pathlib
from typing import Any

from absl import logging
import flax
from flax import linen as nn
import jax.numpy as jnp
import numpy as np

from gemma4_lora import variants
from gemma4_lora.gemma4 import _leaves
from gemma4_lora.gemma4 import _linears
from gemma4_lora.gemma4 import _upstream
from gemma4_lora.hf import _adapter_config
from gemma4_lora.hf import _branch
from gemma4_lora.hf import _check_tensors
from gemma4_lora.hf import _expert_tensors
from gemma4_lora.hf import _full_tensors
from gemma4_lora.hf import _peft_modules
from gemma4_lora.hf import _tensors
from gemma4_lora.nn import _lora
from gemma4_lora.nn.branches import _init
from gemma4_lora.targets import _by_row
from gemma4_lora.targets import _full
from gemma4_lora.targets import _rule

_WHO = 'g4.hf.load_peft'


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedLoRA:
  """A LoRA from a file.

  Attributes:
    model: The base model in a `g4.nn.LoRA` of the file's targets, ranks, alphas
      and methods.
    params: The LoRA leaves alone, float32, nested as in the model's parameters.
  """

  model: _lora.LoRA
  params: dict[str, Any]


def load_peft(path: os.PathLike[str] | str, *, model: nn.Module) -> LoadedLoRA:
  """Loads a LoRA that PEFT wrote, or `g4.hf.save_peft`.

  ```python
  lora = g4.hf.load_peft('my_lora', model=gm.nn.Gemma4_E2B())
  params = gm.peft.merge_params(base_params, lora.params)
  logits = lora.model.apply({'params': params}, tokens).logits
  ```

  The file decides which projections are adapted. Its config must say the same,
  or the call fails: PEFT would ignore, or make anew, what does not fit.

  gate and up of routed experts share one A in PEFT's layout: here each gets a
  copy, and `save_peft` finds copies again.

  LoRA that started from PiSSA or OLoRA belongs to a base that it has changed;
  `lora.model` knows it (`init_lora_weights`), and `g4.nn.init_from_base` changes
  the base, before the leaves of the file replace its A and B.

  Args:
    path: Folder with `adapter_config.json` and `adapter_model.safetensors`, for
      either class of transformers, experts in either layout.
    model: The bare `gm.nn.Gemma4_...`; with `text_only=False`, if the file
      adapts towers.

  Raises:
    FileNotFoundError: There is no such folder or file.
    ValueError: Not a LoRA, not of this model, damaged, or at odds with its
      config; each names tensor or setting, and both sides.
  """
  _check_bare(model)
  config_path, tensors_path = _tensors.find(pathlib.Path(path), who=_WHO)
  config = _adapter_config.read(config_path)
  tensors = _tensors.read(tensors_path)
  rows = _linears.linears(model.config)
  found = _check_tensors.match(tensors, config, rows)
  loras = _row_loras(found, config, _ranks_apart(tensors))
  order = {row.name: i for i, row in enumerate(rows)}
  loras.sort(key=lambda lora: order[lora.row.name])
  everything = (*rows, *_leaves.leaves(model.config))
  copies = _full_tensors.from_modules(
      tensors.full, config, everything, path=tensors.path
  )
  wrapped = _wrap(model, config, loras, _full_tensors.rules(copies, everything))
  return LoadedLoRA(model=wrapped, params=_nested(loras, copies))


def _row_loras(
    found: Sequence[_peft_modules.Found],
    config: _adapter_config.PeftConfig,
    ranks_apart: Mapping[str, Sequence[int]],
) -> list[_branch.RowLoRA]:
  """Puts together what the modules of each row hold."""
  loras, by_row = [], {}
  for x in found:
    if x.site.parameter:
      loras += _expert_tensors.from_stacked(
          x.branch,
          {row.projection: row for row in x.site.rows},
          ranks=ranks_apart.get(x.branch.name),
          use_rslora=config.use_rslora,
      )
    else:
      (row,) = x.site.rows
      by_row.setdefault(row.name, []).append(x)
  for parts in by_row.values():
    parts.sort(key=lambda x: x.site.index or 0)
    (row,) = parts[0].site.rows
    branches = [x.branch for x in parts]
    if row.is_routed:
      loras.append(_expert_tensors.from_per_expert(row, branches))
    else:
      loras.append(_branch.to_row(row, branches, config.variant))
  return loras


def _ranks_apart(tensors: _tensors.Tensors) -> dict[str, Sequence[int]]:
  """Returns what `save_peft` noted of gate and up that do not share A."""
  noted = tensors.metadata.get(_expert_tensors.METADATA)
  return {} if noted is None else json.loads(noted)


def _wrap(
    model: nn.Module,
    config: _adapter_config.PeftConfig,
    loras: Sequence[_branch.RowLoRA],
    modules_to_save: Sequence[_rule.Rule],
) -> _lora.LoRA:
  """Wraps the model with the targets of the file."""
  rank, alpha, rules = _by_row.rules(
      {lora.row.name: (lora.rank, lora.alpha) for lora in loras},
      _linears.linears(model.config),
  )
  if _init.is_from_base(config.init_lora_weights):
    logging.warning(
        '%s: %s says init_lora_weights=%r: it fits only the base that this has'
        ' changed. Change yours by g4.nn.init_from_base(lora.model, params)'
        ' before you merge lora.params into it.',
        _WHO,
        config.path,
        config.init_lora_weights,
    )
  return _lora.LoRA(
      rank=rank,
      alpha=alpha,
      targets=rules,
      dropout=config.lora_dropout,
      use_rslora=config.use_rslora,
      **variants.arguments(config.variant),
      init_lora_weights=config.init_lora_weights,
      modules_to_save=modules_to_save,
      model=model,
  )


def _nested(
    loras: Sequence[_branch.RowLoRA],
    copies: Sequence[tuple[_full.Saved, np.ndarray]],
) -> dict[str, Any]:
  """Returns the leaves at their paths."""
  leaves = {part.path: value for part, value in copies}
  for lora in loras:
    path = lora.row.lora_path
    leaves |= {f'{path}.{name}': x for name, x in lora.leaves.items()}
  return flax.traverse_util.unflatten_dict(
      {path: jnp.asarray(x) for path, x in leaves.items()}, sep='.'
  )


def _check_bare(model: nn.Module) -> None:
  if isinstance(model, _lora.LoRA):
    raise ValueError(
        f'{_WHO}(model=...) got a model with LoRA already. Pass the bare model:'
        ' model.model. It wraps it with what the file adapts.'
    )
  _upstream.check_is_gemma4(model, argument=f'{_WHO}(model=...)')
