"""Saves a quantised base, so that it need not be quantised again."""

from collections.abc import Mapping
from typing import Any

from etils import epath
import jax
import numpy as np
import orbax.checkpoint as ocp

from gemma4_lora import _trees
from gemma4_lora import nn
from gemma4_lora.ckpts.sources import _contents
from gemma4_lora.ckpts.sources import _format_file
from gemma4_lora.host import _intact
from gemma4_lora.host import _threads
from gemma4_lora.host.folders import _new_folder
from gemma4_lora.nn.branches import _quantized_base
from gemma4_lora.quant import _arrays

_WHO = 'g4.ckpts.save_quantized'
# Size of a file of Orbax.
_FILE_BYTES = 2**27


def save_quantized(
    path: epath.PathLike,
    *,
    model: nn.LoRA,
    params: Mapping[str, Any],
    overwrite: bool = False,
) -> None:
  """Saves a quantised base, without LoRA.

  ```python
  g4.ckpts.save_quantized('gemma4_e2b_int4', model=model, params=state.params)
  ```

  `g4.ckpts.PartialLoad(path='gemma4_e2b_int4')`, and with it `SkipLoRA4`, reads
  codes and scales unchanged, into a model with the same `quantize=`. The file
  `quantized.json` beside them names the format of each array.

  Args:
    path: Folder to make, here or in a bucket. It appears under its name once it is complete.
    model: A `g4.nn.LoRA` with `quantize=`.
    params: Its parameters, nested. LoRA leaves among them are left out.
    overwrite: Whether to replace the folder if there is one.

  Raises:
    FileExistsError: `path` exists, and `overwrite` is False.
    ValueError: `model` quantises nothing, or `params` do not fit it.
  """
  check_model(model, who=_WHO)
  target = _new_folder.check_free(
      path, overwrite=overwrite, who=_WHO, by_orbax=True
  )
  _quantized_base.check(params, model.quantized)
  base, _ = _trees.split_lora(params)
  for name, leaf in _trees.flatten(base).items():
    if not isinstance(leaf, (jax.Array, np.ndarray)):
      raise ValueError(
          f'{_WHO}: {_trees.join(name)} has no value'
          f' ({type(leaf).__name__}): restore the base first.'
      )
  with _new_folder.new_folder(target, overwrite=overwrite, who=_WHO) as folder:
    # Orbax makes its folder itself.
    made = folder / 'checkpoint'
    stored = jax.tree.map(_arrays.stored, base, is_leaf=_arrays.is_quantized)
    digests = _threads.started(
        lambda: {
            _trees.join(path): _intact.digest(np.asarray(x))
            for path, x in _trees.flatten(stored).items()
            if getattr(x, 'is_fully_addressable', True)
        }
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
      checkpointer.save(
          made,
          args=ocp.args.PyTreeSave(
              stored, ocdbt_target_data_file_size=_FILE_BYTES
          ),
      )
    for file in made.iterdir():
      file.rename(folder / file.name)
    made.rmdir()
    _format_file.write(folder, model.quantized)
    _contents.write(folder, digests())


def check_model(model: Any, *, who: str) -> None:
  """Raises ValueError unless the model quantises its base."""
  if not isinstance(model, nn.LoRA) or not model.quantize:
    raise ValueError(
        f'{who}: model= quantises nothing. Give g4.nn.LoRA(quantize=…), as'
        f" quantize='int4'. Got: {type(model).__name__}."
    )
