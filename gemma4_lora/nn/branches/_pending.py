"""LoRA leaves that wait for the base, and whether leaves hold usable numbers.

Until the base is there, A and B of PiSSA, OLoRA and LoftQ hold the largest number
of their dtype. `jax_debug_nans` does not stop there, as it would at NaN. A
forward pass with them overflows, and its loss is NaN.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gemma4_lora import _trees
from gemma4_lora.host import _finite

_SHOWN = 3
# Products of anything smaller may be finite in float32.
_OVERFLOWS = 1e30


def fill(shape: tuple[int, ...], dtype: Any) -> jax.Array:
  """Returns a leaf that waits for the base."""
  return jnp.full(shape, _mark(dtype), dtype)


def is_pending(leaf: jax.Array) -> bool:
  """Whether a leaf still waits for the base."""
  return bool(_finite.which({0: leaf}, _is_mark))


def problem(lora: Mapping[_trees.Path, Any]) -> str:
  """Returns why LoRA leaves cannot be used, or an empty string.

  Args:
    lora: The leaves by their paths. Shapes without values count as good.
  """
  if text := not_set(lora):
    return text
  bad = _finite.not_finite(lora)
  if not bad:
    return ''
  return (
      f'{len(bad)} LoRA leaves have NaN or infinite values: {_some(bad)}. The'
      ' run diverged: take an earlier step.'
  )


def not_set(lora: Mapping[_trees.Path, Any]) -> str:
  """Returns which LoRA leaves wait for the base, or an empty string.

  Args:
    lora: The leaves by their paths. Shapes without values count as set.
  """
  a = {path: x for path, x in lora.items() if path[-1] == 'a'}
  pending = _finite.which(a, _is_mark)
  if not pending:
    return ''
  return (
      f'A of {len(pending)} projections has no values yet: {_some(pending)}. It'
      " waits for the base weights, as init_lora_weights='pissa', 'olora' and"
      " 'loftq' take A and B from them. g4.ckpts.SkipLoRA4(wrapped=…,"
      ' model=cfg.ref.model) or g4.nn.init_from_base sets both.'
  )


def _mark(dtype: Any) -> float:
  largest = float(jnp.finfo(dtype).max)
  return largest if largest > _OVERFLOWS else float('inf')


def _is_mark(numpy: Any, x: Any) -> Any:
  # In a narrower dtype than it was made in, the largest number is infinite.
  return (x >= float(jnp.finfo(x.dtype).max)).all()


def _some(paths: list[_trees.Path]) -> str:
  return ', '.join(map(_trees.join, paths[:_SHOWN]))
