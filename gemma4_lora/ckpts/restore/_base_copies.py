"""What `modules_to_save` trains in full starts as the base, and so follows it.

`model.init` copies its random base. Once a transform has put other weights in
its place, the copies must be of those, or step 0 would not be the released
model.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp

from gemma4_lora import _trees
from gemma4_lora.gemma4 import _released
from gemma4_lora.gemma4 import _weights
from gemma4_lora.nn.branches import _copies


def following(transform: Callable[[Any], Any], state: Any) -> Any:
  """Applies what restores the base, then copies it again.

  Copies that were trained, and loaded before the base, stay.

  Args:
    transform: From a state to a state.
    state: The state.

  Returns:
    A state of the same structure, shapes, dtypes and shardings.
  """
  paths = [p for p in _trees.flatten(state.params) if _copies.is_copy(p)]
  fresh = [path for path in paths if _is_fresh(state.params, path)]
  state = transform(state)
  if not paths:
    return state
  params = state.params
  for path in fresh:
    old = _trees.get_at(params, path)
    new = _base_of(params, path).astype(old.dtype)
    # Not the base's own buffer, which a step may be given to overwrite.
    new = jax.device_put(jnp.copy(new), old.sharding)
    params = _trees.replace_at(params, path, new)
  logging.info(
      'modules_to_save: %d copies set to the restored base, %d kept as loaded.',
      len(fresh),
      len(paths) - len(fresh),
  )
  return dataclasses.replace(state, params=params)


def _is_fresh(params: Any, path: _trees.Path) -> bool:
  """Whether a copy is still what `model.init` made: the base's own values."""
  base = _base_of(params, path)
  if isinstance(base, jax.ShapeDtypeStruct):
    return True  # A base without values yet.
  copy = _trees.get_at(params, path)
  # XLA drops a pair of casts: of a compiled `model.init`, the copy is of values
  # that were never rounded to the base's dtype.
  return bool(jnp.all(copy.astype(base.dtype) == base))


def _base_of(params: Any, path: _trees.Path) -> Any:
  """Returns what a copy is of."""
  *scope, key, name = path
  if key == _trees.LORA_KEY:  # `final_norm.lora.scale`
    return _trees.get_at(params, (*scope, name))
  row = _released.row_of(path[:-1])  # `layer_0.attn.kv_einsum.lora.v.w`
  if row is None:
    raise ValueError(
        f'{_trees.join(path)} is a copy of no linear of Gemma 4 that'
        ' g4.nn.LoRA knows.'
    )
  weight = _trees.get_at(params, (*path[:-3], row.path.rpartition('.')[2]))
  return _weights.part(weight, row)
