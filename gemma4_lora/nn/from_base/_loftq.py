"""LoftQ: A and B start as the best fit of the quantisation error.

`scale * A @ B` is nearest to `W - Q`, so that step 0 is nearer to the released
model than its quantised base is. Q is the weight as quantised without LoftQ.
This is one round of the paper's method, as in PEFT's default.

Reference: https://arxiv.org/abs/2310.08659
"""

from collections.abc import Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp

from gemma4_lora import _trees
from gemma4_lora import quant
from gemma4_lora.gemma4 import _linears
from gemma4_lora.gemma4 import _weights
from gemma4_lora.nn import _lora
from gemma4_lora.nn.branches import _init
from gemma4_lora.nn.from_base import _low_rank_fit
from gemma4_lora.targets import _resolve


class LoftQ:
  """Sees each leaf before and after it is quantised, then sets A and B."""

  def __init__(self, model: _lora.LoRA):
    """Initialises.

    Args:
      model: A model with `init_lora_weights='loftq'`.
    """
    self._model = model
    self._by_path: dict[str, list[tuple[int, _resolve.Adapted]]] = {}
    for index, linear in enumerate(model.adapted):
      self._by_path.setdefault(linear.row.path, []).append((index, linear))
    self._fits: dict[str, tuple[jax.Array, jax.Array]] = {}

  def add(self, path: str, original: Any, quantized: Any) -> None:
    """Fits the quantisation error of a leaf, if LoRA adapts it.

    Args:
      path: Dotted, of the leaf.
      original: The whole weight.
      quantized: The same, quantised.
    """
    if path not in self._by_path:
      return
    error = jnp.asarray(original, jnp.float32)
    error -= quant.dequantize(quantized, jnp.float32)
    init = self._model.init_lora_weights
    for index, linear in self._by_path[path]:
      self._fits[linear.row.lora_path] = _fit(
          error,
          jax.random.key(index),
          row=_weights.nameless(linear.row),
          rank=linear.rank,
          num_iters=_init.num_iters(init),
          scale=linear.scale(use_rslora=self._model.use_rslora),
      )

  def set(self, params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns parameters with A and B.

    Args:
      params: The model's parameters, nested.

    Raises:
      ValueError: A leaf was not seen: the checkpoint holds it quantised.
    """
    new: dict[str, Any] = jax.tree.map(lambda x: x, dict(params))
    for linear in self._model.adapted:
      path = linear.row.lora_path
      if path not in self._fits:
        raise ValueError(
            f'init_lora_weights={self._model.init_lora_weights!r}:'
            f' {linear.row.path} was quantised before, so its quantisation'
            ' error is unknown. Restore the unquantised checkpoint, or take'
            ' another init_lora_weights=.'
        )
      a, b = self._fits[path]
      _trees.put_like(new, f'{path}.a', a)
      _trees.put_like(new, f'{path}.b', b)
    return new


@functools.partial(
    jax.jit, static_argnames=('row', 'rank', 'num_iters', 'scale')
)
def _fit(
    error: jax.Array,
    key: jax.Array,
    *,
    row: _linears.Linear,
    rank: int,
    num_iters: int | None,
    scale: float,
) -> tuple[jax.Array, jax.Array]:
  """Returns A and B of one projection, for each of its experts or layers."""
  if row.batch_axes:
    fit = functools.partial(
        _fit,
        row=row.first_of_batch,
        rank=rank,
        num_iters=num_iters,
        scale=scale,
    )
    keys = jax.random.split(key, error.shape[0])
    return jax.lax.map(lambda one: fit(*one), (error, keys))
  matrix = _weights.to_matrix(_weights.part(error, row), row)
  return _low_rank_fit.fit(matrix, rank, key, num_iters=num_iters, scale=scale)
