"""`python -m gemma4_lora quantize`: a config's base, quantised once and saved."""

from typing import Any

from etils import epath
import numpy as np

from gemma4_lora import _trees
from gemma4_lora import nn
from gemma4_lora.ckpts import _requests
from gemma4_lora.ckpts import _save_quantized
from gemma4_lora.ckpts.restore import _quantize_on_load
from gemma4_lora.ckpts.restore import _restore
from gemma4_lora.ckpts.sources import _quantized_leaves
from gemma4_lora.gemma4 import _upstream
from gemma4_lora.host.folders import _new_folder
from gemma4_lora.runs import _called_base
from gemma4_lora.runs import _model_base


def quantize_checkpoint(
    path: epath.PathLike,
    *,
    model: Any,
    init_transform: Any,
    overwrite: bool = False,
    who: str,
) -> str:
  """Reads a base, quantises it as the model says, and saves it.

  Args:
    path: Where `save_quantized` writes.
    model: A config's model: a `g4.nn.LoRA` with `quantize=`.
    init_transform: The config's: from where the base is restored. One that we
      cannot read for its settings is called, as in the run.
    overwrite: See `save_quantized`.
    who: The command, for messages.

  Returns:
    What was written, in words.

  Raises:
    FileExistsError: There is something at `path`, and not `overwrite`.
    FileNotFoundError: There is no checkpoint.
    ValueError: `model` quantises nothing; or the checkpoint does not fit it.
  """
  _save_quantized.check_model(model, who=who)
  _new_folder.check_free(
      path, overwrite=overwrite, who=who, how='--overwrite', by_orbax=True
  )
  params, origin = _restored(model, init_transform, who=who)
  _save_quantized.save_quantized(
      path, model=model, params=params, overwrite=overwrite
  )
  argument = _quantized_leaves.argument(model.quantized.values())
  return f'{path}: the base of {origin}, {argument}.'


def _restored(
    model: nn.LoRA, init_transform: Any, *, who: str
) -> tuple[dict[str, Any], str]:
  """Returns the quantised base, and where it is from."""
  base = _model_base.abstract(model)
  if _requests.unknown(init_transform):
    params = _called(model, init_transform, base, who=who)
    return params, _called_base.describe(init_transform)
  request = _requests.base_request(init_transform)
  if request is None:
    raise ValueError(
        f'{who}: init_transform= of the config restores no base:'
        f' {type(init_transform).__name__}. Give it as'
        ' g4.ckpts.SkipLoRA4(wrapped=g4.ckpts.PartialLoad(path=…)).'
    )
  params = _restore.restore({'params': base}, request)['params']
  return params, str(request.path)


def _called(
    model: nn.LoRA, init_transform: Any, base: dict[str, Any], *, who: str
) -> dict[str, Any]:
  """Returns the quantised base that a transform of a user's own gives.

  It is called as training calls it, with the leaves quantised. If it cannot
  take them so, it gets a base that is not quantised, which is quantised then.

  Args:
    model: The config's model.
    init_transform: The config's.
    base: Shapes and dtypes of the base, as the model holds it.
    who: The command, for messages.
  """
  try:
    return _called_base.call(model, init_transform, base, who=who)
  except ValueError:
    dense = _upstream.abstract_params(model.model)
    params = _called_base.call(model, init_transform, dense, who=who)
  for name, encoding in model.quantized.items():
    path = _trees.segments(name)
    array = np.asarray(_trees.get_at(params, path))
    made = _quantize_on_load.quantize(array, encoding)
    params = _trees.replace_at(params, path, made.value)
  return params
