"""From a PEFT folder to a `g4.nn.LoRA` and its leaves."""

import dataclasses
from typing import Any

from absl import logging
from etils import epath
import flax
from flax import linen as nn
import jax.numpy as jnp

from gemma4_lora import variants
from gemma4_lora.gemma4 import _linears
from gemma4_lora.gemma4 import _upstream
from gemma4_lora.nn import _lora
from gemma4_lora.nn.branches import _init
from gemma4_lora.peft import _read_folder
from gemma4_lora.targets import _by_row

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


def load_peft(path: epath.PathLike, *, model: nn.Module) -> LoadedLoRA:
  """Loads a LoRA that PEFT wrote, or `g4.hf.save_peft`.

  ```python
  lora = g4.hf.load_peft('my_lora', model=gm.nn.Gemma4_E2B())
  params = gm.peft.merge_params(base_params, lora.params)
  logits = lora.model.apply({'params': params}, tokens).logits
  ```

  The file decides which projections are adapted. Its config must agree, or the
  call fails: PEFT would ignore tensors that do not fit, or initialise them
  anew.

  gate and up of routed experts share one A in PEFT's layout: here each gets a
  copy, and `save_peft` recognises copies.

  LoRA that started from PiSSA or OLoRA belongs to a changed base. `lora.model`
  has its `init_lora_weights`; call `g4.nn.init_from_base` to change the base,
  before the leaves of the file replace its A and B.

  Args:
    path: Folder with `adapter_config.json` and `adapter_model.safetensors`, here
      or in a bucket, for
      either class of transformers, experts in either layout.
    model: The bare `gm.nn.Gemma4_...`; with `text_only=False`, if the file
      adapts towers.

  Raises:
    FileNotFoundError: There is no such folder or file.
    ValueError: The folder is not a LoRA, does not fit this model, is damaged,
      or contradicts its config. The message has tensor or setting, and both
      sides.
  """
  _check_bare(model)
  folder = _read_folder.read(path, model_config=model.config, who=_WHO)
  return LoadedLoRA(
      model=_wrap(model, folder),
      params=flax.traverse_util.unflatten_dict(
          {path: jnp.asarray(x) for path, x in folder.leaves.items()}, sep='.'
      ),
  )


def _wrap(model: nn.Module, folder: _read_folder.Folder) -> _lora.LoRA:
  """Wraps the model with the targets of the file."""
  config = folder.config
  rank, alpha, rules = _by_row.rules(
      {lora.row.name: (lora.rank, lora.alpha) for lora in folder.loras},
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
  try:
    return _lora.LoRA(
        rank=rank,
        alpha=alpha,
        targets=rules,
        dropout=config.lora_dropout,
        use_rslora=config.use_rslora,
        **variants.arguments(config.variant),
        init_lora_weights=config.init_lora_weights,
        modules_to_save=folder.modules_to_save,
        model=model,
    )
  except ValueError as e:  # As for a start that such a rank does not have.
    raise ValueError(f'{_WHO}: {config.path}: {e}') from e


def _check_bare(model: nn.Module) -> None:
  if isinstance(model, _lora.LoRA):
    raise ValueError(
        f'{_WHO}(model=...) got a model with LoRA already. Pass the bare model:'
        ' model.model. It wraps it with what the file adapts.'
    )
  _upstream.check_is_gemma4(model, argument=f'{_WHO}(model=...)')
