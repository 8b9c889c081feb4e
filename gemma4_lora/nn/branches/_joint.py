"""Base and low-rank branches as one product, where that moves fewer bytes.

A separate branch is an array as large as the linear's output. It is written,
read and added, and the backward pass reads the output's gradient once more for
it. For a wide output (`gate`, `up`, `q`), it is cheaper to append B to a copy
of the weight, and A's output to the input:

  `[x, scale * x @ A] @ [[W], [B]]`

Base weights have a gradient here like any input. It is a product of its own,
which the compiler drops if it is not used. Quantised ones have none, and are
dequantised once more in the backward pass.
"""

from collections.abc import Sequence
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from gemma4_lora.gemma4 import _linears
from gemma4_lora.nn.branches import _low_rank
from gemma4_lora.quant import _arrays


def pays(eqn: str, row: _linears.Linear, x: jax.Array) -> bool:
  """Whether one product moves fewer bytes.

  It saves one write and one read of an output, and costs copies of weight and
  input.

  Args:
    eqn: Einsum of the base.
    row: One projection of the weight.
    x: The base's input.
  """
  x_axes, w_axes, _ = _low_rank.split(eqn)
  if row.batch_axes or len(row.in_axes) != 1:
    return False
  if x_axes[-1] != w_axes[row.in_axes[0]]:
    return False
  slots = 1 if row.slot_axis is None else row.shape[row.slot_axis]
  narrow, wide = x.shape[-1], slots * math.prod(row.out_shape)
  tokens = x.size // narrow
  return tokens * (wide - narrow) > narrow * wide


def apply(
    eqn: str,
    x: jax.Array,
    weight: Any,
    branches: Sequence[tuple[_linears.Linear, jax.Array, jax.Array]],
    dtype: Any,
) -> jax.Array:
  """Returns the output of the base with its branches.

  Args:
    eqn: Einsum of the base, of its input and its weight.
    x: The base's input; its last axis is contracted.
    weight: The base's weight, quantised or not.
    branches: Projection, `scale * x @ A` as `[..., rank]` and B for each.
    dtype: The weight's dtype, where it is quantised.
  """
  lows = [low for _, low, _ in branches]
  shape = _arrays.shape_of(weight)
  if not _arrays.is_quantized(weight):
    dtype = weight.dtype
  parts = [
      _laid_out(eqn, row, b.astype(dtype), shape) for row, _, b in branches
  ]
  return _product(
      eqn,
      branches[0][0].in_axes[0],
      dtype,
      x,
      weight,
      jnp.concatenate(lows, axis=-1),
      jnp.concatenate(parts, axis=branches[0][0].in_axes[0]),
  )


def _laid_out(
    eqn: str, row: _linears.Linear, b: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
  """Returns B in the weight's layout, the rank in the place of the input."""
  (in_axis,) = row.in_axes
  _, w_axes, _ = _low_rank.split(eqn)
  gained = ''.join(w_axes[axis] for axis in row.out_axes)
  rank = w_axes[in_axis]
  kept = ''.join(c for c in w_axes if c in gained + rank)
  b = jnp.einsum(f'{rank}{gained}->{kept}', b)
  if row.slot_axis is None:
    return b
  assert row.slot is not None
  after = shape[row.slot_axis] - row.slot - 1
  b = jnp.expand_dims(b, row.slot_axis)
  widths = [(0, 0)] * b.ndim
  widths[row.slot_axis] = (row.slot, after)
  return jnp.pad(b, widths)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _product(eqn, axis, dtype, x, weight, low, part):
  """`[x, low] @ [[weight], [part]]`"""
  inputs = jnp.concatenate([x, low], axis=-1)
  weight = _arrays.dense(weight, dtype)
  return jnp.einsum(eqn, inputs, jnp.concatenate([weight, part], axis=axis))


def _backward(eqn, axis, dtype, kept, gradient):
  x, weight, low, part = kept
  weights = jnp.concatenate([_arrays.dense(weight, dtype), part], axis=axis)
  width = x.shape[-1]
  inputs = jax.ShapeDtypeStruct((*x.shape[:-1], width + low.shape[-1]), x.dtype)
  to_inputs = _to_input(eqn, inputs, weights, gradient)
  to_weight = None
  if not _arrays.is_quantized(weight):
    to_weight = _to_weight(eqn, x, weight, gradient)
  return (
      to_inputs[..., :width],
      to_weight,
      to_inputs[..., width:],
      _to_weight(eqn, low, part, gradient),
  )


def _to_input(eqn: str, x: Any, weight: jax.Array, gradient: jax.Array) -> Any:
  """Returns the gradient to the input of an einsum."""
  transposed = jax.linear_transpose(lambda x: jnp.einsum(eqn, x, weight), x)
  return transposed(gradient)[0]


def _to_weight(eqn: str, x: jax.Array, weight: Any, gradient: jax.Array) -> Any:
  """Returns the gradient to the weight of an einsum."""
  transposed = jax.linear_transpose(lambda w: jnp.einsum(eqn, x, w), weight)
  return transposed(gradient)[0]


_product.defvjp(
    lambda eqn, axis, dtype, *args: (_product(eqn, axis, dtype, *args), args),
    _backward,
)
