"""`modules_to_save`: parts of the base that are trained in full.

What is trained is a float32 copy among the LoRA leaves (`final_norm.lora.scale`),
as PEFT has it: `kd.optim.select('lora')` selects it, it is saved with the LoRA
leaves, and the base stays as restored. The forward pass sees the copy, cast to
the base's dtype, in place of the base.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from flax import linen as nn
import jax

from gemma4_lora import _trees
from gemma4_lora.gemma4 import _weights
from gemma4_lora.targets import _full


def make(
    module: nn.Module, saved: Sequence[_full.Saved], *, dtype: Any
) -> None:
  """Makes the copies, equal to the base, on `init`.

  Args:
    module: The model, its own parameters made.
    saved: What to copy.
    dtype: The copies' dtype.

  Raises:
    ValueError: `init` has not made what is to be copied.
  """
  params = module.variables['params']
  for part in saved:
    base = _trees.find(params, part.row.path)
    if base is None:
      raise ValueError(
          f'modules_to_save: init made no {part.row.path}. gemma makes some'
          ' parameters of the towers only when init is given their input. Give'
          ' it images= and audio=, or leave this out.'
      )
    value = copy_of(base, part, dtype=dtype)
    *scopes, name = part.path.split('.')
    scope: Any = module.scope
    for key in scopes:
      scope = scope.push(key, reuse=True)
    scope.param(name, lambda _, value=value: value)


def copy_of(base: jax.Array, part: _full.Saved, *, dtype: Any) -> jax.Array:
  """Returns the start value of a copy: its part of the base leaf."""
  return _weights.part(base, part.row).astype(dtype)


def substitute(
    params: Mapping[str, Any], saved: Sequence[_full.Saved]
) -> dict[str, Any]:
  """Returns parameters with the copies in place of the base.

  Args:
    params: Nested; the copies stay in them.
    saved: What has a copy.

  Raises:
    ValueError: A copy is missing.
  """
  new: dict[str, Any] = jax.tree.map(lambda x: x, dict(params))
  for part in saved:
    copy = _trees.find(params, part.path)
    if copy is None:
      raise ValueError(
          f'The parameters have no {part.path}, which'
          ' g4.nn.LoRA(modules_to_save=...) reads. Were they made by this'
          ' model.init?'
      )
    *scopes, name = part.row.path.split('.')
    node = new
    for key in scopes:
      node = node[key]
    node[name] = _weights.with_part(node[name], part.row, copy)
  return new


def is_copy(path: _trees.Path) -> bool:
  """Whether a path is that of a copy, and not of A, B or another LoRA leaf."""
  if not _trees.is_lora(path):
    return False
  *_, scope, name = path
  return name == 'w' or (scope == _trees.LORA_KEY and name not in ('a', 'b'))
