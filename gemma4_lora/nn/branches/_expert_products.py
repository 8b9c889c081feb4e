"""The two products of routed experts, each row with its own expert's weight.

A quantised weight is dequantised a tile of output features at a time, for all
experts: a whole expert weight is never dequantised at once. Tiles of experts
  would work too, but each would run over all rows.
"""

from typing import Any

import jax
import jax.numpy as jnp

from gemma4_lora.nn.branches import _base
from gemma4_lora.quant import _arrays

# Size limit of a dequantised tile: small against an expert weight, and large
# enough for the matrix unit.
_TILE_BYTES = 2**26
_MIN_TILES = 4


def gate_up(
    rows: jax.Array, weight: Any, sizes: jax.Array, dtype: Any
) -> jax.Array:
  """Returns gate and up of sorted rows, `[M, 2, F]`.

  Args:
    rows: `[M, D]`, sorted by expert.
    weight: `[E, 2, F, D]`, quantised or not.
    sizes: i32`[E]`, rows of each expert.
    dtype: The weight's dtype, where it is quantised.
  """
  if not _arrays.is_quantized(weight):
    weight = jnp.transpose(weight, (0, 3, 1, 2))
    hidden = jax.lax.ragged_dot(
        rows, weight.reshape(*weight.shape[:2], -1), sizes
    )
    return hidden.reshape(-1, *weight.shape[2:])
  return jnp.stack(
      [
          _tiled(
              rows,
              jax.tree.map(lambda x, slot=slot: x[:, slot], weight),
              sizes,
              axis=1,
              dtype=dtype,
          )
          for slot in range(2)
      ],
      axis=1,
  )


def down(
    hidden: jax.Array, weight: Any, sizes: jax.Array, dtype: Any
) -> jax.Array:
  """Returns down of sorted rows, `[M, D]`.

  Args:
    hidden: `[M, F]`, sorted by expert.
    weight: `[E, F, D]`, quantised or not.
    sizes: i32`[E]`, rows of each expert.
    dtype: The weight's dtype, where it is quantised.
  """
  if not _arrays.is_quantized(weight):
    return jax.lax.ragged_dot(hidden, weight, sizes)
  return _tiled(hidden, weight, sizes, axis=2, dtype=dtype)


def _tiled(
    x: jax.Array, weight: Any, sizes: jax.Array, *, axis: int, dtype: Any
) -> jax.Array:
  """Returns a grouped product, some of its output features at a time.

  Args:
    x: `[M, I]`
    weight: Quantised, `[E, O, I]` or `[E, I, O]`.
    sizes: i32`[E]`
    axis: Axis of the output features, which have scales of their own.
    dtype: The weight's dtype.
  """
  num_experts, *_ = shape = _arrays.shape_of(weight)
  num_out = shape[axis]
  like = jax.ShapeDtypeStruct(x.shape, x.dtype)
  tile = _tile(num_out, num_experts * x.shape[-1] * jnp.dtype(dtype).itemsize)

  def rows_of(start, weight):
    cut = _arrays.slice_in_dim(weight, start, tile, axis=axis)
    part = _arrays.dequantize(cut, dtype)
    return part.swapaxes(1, 2) if axis == 1 else part  # [E, I, tile]

  def apply(x, arrays):
    weight, sizes = arrays

    def step(_, start):
      return None, jax.lax.ragged_dot(x, rows_of(start, weight), sizes)

    _, parts = jax.lax.scan(step, None, jnp.arange(0, num_out, tile))
    return jnp.moveaxis(parts, 0, 1).reshape(x.shape[0], num_out)

  def backward(arrays, gradient):
    weight, sizes = arrays

    def step(total, start):
      part = jax.lax.dynamic_slice_in_dim(gradient, start, tile, axis=1)
      weights = rows_of(start, weight).swapaxes(1, 2)
      total += jax.lax.ragged_dot(
          part, weights, sizes, preferred_element_type=jnp.float32
      )
      return total, None

    total = jnp.zeros(like.shape, jnp.float32)
    total, _ = jax.lax.scan(step, total, jnp.arange(0, num_out, tile))
    return total.astype(like.dtype)

  return _base.linear(apply, x, (weight, sizes), transposed=backward)


def _tile(num_out: int, feature_bytes: int) -> int:
  """Returns how many output features to take at a time.

  Args:
    num_out: How many there are.
    feature_bytes: Size of one dequantised output feature, in bytes over all
      experts.
  """
  most = min(_TILE_BYTES // feature_bytes, num_out // _MIN_TILES)
  return max(n for n in range(1, max(most, 1) + 1) if num_out % n == 0)
