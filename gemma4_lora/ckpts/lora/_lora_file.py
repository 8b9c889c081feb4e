"""Our own file of LoRA alone, with its fingerprint.

A folder with `lora.safetensors`, whose tensors have the dotted paths of the
leaves, and `lora.json`, the fingerprint of base and settings.
"""

from collections.abc import Mapping
import json
from typing import Any

from etils import epath
import jax
import numpy as np
import safetensors.numpy

from gemma4_lora import _trees
from gemma4_lora import nn
from gemma4_lora.ckpts.lora import _fingerprint
from gemma4_lora.host import _intact
from gemma4_lora.host import _threads
from gemma4_lora.host.files import _tensors_in_memory
from gemma4_lora.host.folders import _commit
from gemma4_lora.host.folders import _new_folder
from gemma4_lora.nn.branches import _pending

_TENSORS = 'lora.safetensors'
_FINGERPRINT = 'lora.json'
_DIGESTS = 'digests'


def save_lora(
    path: epath.PathLike,
    *,
    model: nn.LoRA,
    params: Mapping[str, Any],
    overwrite: bool = False,
) -> None:
  """Saves what LoRA trained, without the base.

  ```python
  g4.ckpts.save_lora('my_lora', model=model, params=state.params)
  ```

  The dtypes stay. A fingerprint of the base and of LoRA's settings is saved
  with the leaves. By it `g4.ckpts.LoadLoRA` checks what they fit. For PEFT and
  vLLM, use `g4.hf.save_peft`.

  Args:
    path: Folder to make, here or in a bucket. It appears under its name once
      it is complete.
    model: A `g4.nn.LoRA`.
    params: Its parameters, nested, the base among them.
    overwrite: Whether to replace the folder if there is one.

  Raises:
    FileExistsError: `path` exists, and `overwrite` is False.
    ValueError: `model` has no LoRA, or `params` lacks a leaf, or has NaN.
  """
  who = 'g4.ckpts.save_lora'
  if not isinstance(model, nn.LoRA):
    raise ValueError(
        f'{who}(model=...) takes a g4.nn.LoRA. Got: {type(model).__name__}'
    )
  path = _new_folder.check_free(path, overwrite=overwrite, who=who)
  flat = {_trees.join(k): x for k, x in _trees.flatten(params).items()}
  shapes = model.lora_shapes
  lacking = [name for name in shapes if name not in flat]
  if lacking:
    raise ValueError(
        f'{who}: params lacks {len(lacking)} LoRA leaves of the model,'
        f' {lacking[0]} first. Were they made by this model.init?'
    )
  if not any(not _trees.is_lora(k) for k in _trees.flatten(params)):
    raise ValueError(
        f'{who}: params has LoRA leaves alone. Give it the base too, of which a'
        ' fingerprint is kept.'
    )
  problem = _pending.problem(
      {tuple(name.split('.')): flat[name] for name in shapes}
  )
  if problem:
    raise ValueError(f'{who}: {problem}')
  leaves = jax.device_get({name: flat[name] for name in shapes})
  fingerprint = _fingerprint.describe(model, params)
  with _new_folder.new_folder(path, overwrite=overwrite, who=who) as folder:
    tensors = {k: np.ascontiguousarray(x) for k, x in leaves.items()}
    # Beside the write, which takes three times as long where nothing waits.
    digests = _threads.started(
        lambda: {k: _intact.digest(x) for k, x in tensors.items()}
    )
    safetensors.numpy.save_file(tensors, folder / _TENSORS)
    said = _fingerprint.to_write({**fingerprint, _DIGESTS: digests()})
    (folder / _FINGERPRINT).write_text(json.dumps(said, indent=2))


def is_file(path: epath.Path) -> bool:
  """Whether `save_lora` made a folder."""
  return (path / _FINGERPRINT).exists()


def read(
    path: epath.Path, *, who: str
) -> tuple[dict[str, np.ndarray], _fingerprint.Fingerprint]:
  """Returns the leaves by their dotted paths, and the fingerprint.

  Args:
    path: The folder.
    who: The transform that asks, for messages.

  Raises:
    ValueError: A file is truncated or missing.
  """
  try:
    data = _commit.read_files(path, (_TENSORS, _FINGERPRINT), who=who)
    leaves, _ = _tensors_in_memory.read(
        data[_TENSORS], path=path / _TENSORS, who=who
    )
  except (ValueError, FileNotFoundError) as e:
    raise ValueError(f'{path / _TENSORS} cannot be read: {e}') from e
  said = _fingerprint.parse(data[_FINGERPRINT], file=path / _FINGERPRINT)
  _fingerprint.check_format(said, who=who, where=str(path / _FINGERPRINT))
  _check(leaves, said, path=path)
  return leaves, said


def _check(
    leaves: Mapping[str, np.ndarray],
    said: _fingerprint.Fingerprint,
    *,
    path: epath.Path,
) -> None:
  """Checks that the tensors are those of the fingerprint."""
  file = path / _TENSORS
  for name, (dtype, shape) in said['lora']['leaves'].items():
    x = leaves.get(name)
    found = 'none' if x is None else f'{x.dtype}{list(x.shape)}'
    if found != f'{dtype}{shape}':
      raise ValueError(
          f'{file} is damaged: {name} is {found} there, and {dtype}{shape} by'
          f' {_FINGERPRINT}. Copy the folder again.'
      )
  # Older files have none.
  for name, digest in said.get(_DIGESTS, {}).items():
    if name not in leaves or _intact.digest(leaves[name]) != digest:
      raise ValueError(
          f'{file} is damaged: {name} is not what was saved: its digest is'
          f' another than that in {_FINGERPRINT}. Copy the folder again.'
      )
