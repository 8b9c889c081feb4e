"""A projection's part of a base weight that gemma may pack with others."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gemma4_lora.gemma4 import _linears
from gemma4_lora.gemma4 import _rows


def part(weight: Any, row: _rows.Row) -> Any:
  """Returns the projection's part: v of `kv_einsum[2, K, D, H]` is `[K, D, H]`.

  Args:
    weight: The whole base weight, array or `jax.ShapeDtypeStruct`.
    row: The projection.
  """
  if row.slot_axis is None:
    return weight
  if isinstance(weight, jax.ShapeDtypeStruct):
    shape = np.delete(weight.shape, row.slot_axis)
    return jax.ShapeDtypeStruct(tuple(shape.tolist()), weight.dtype)
  return weight[_index(row)]


def with_part(weight: jax.Array, row: _rows.Row, value: jax.Array) -> jax.Array:
  """Returns the whole weight with the projection's part replaced."""
  if row.slot_axis is None:
    return value.astype(weight.dtype)
  weight = jnp.asarray(weight)
  return weight.at[_index(row)].set(value.astype(weight.dtype))


def axes(row: _linears.Linear) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """Returns the input and output axes of the projection's part."""

  def shift(axis: int) -> int:
    return axis - (row.slot_axis is not None and axis > row.slot_axis)

  return tuple(map(shift, row.in_axes)), tuple(map(shift, row.out_axes))


def over_outputs(features: jax.Array, row: _linears.Linear) -> jax.Array:
  """Lays `[*batch, *out]` out for broadcasting against the projection's part.

  Args:
    features: One value per output feature.
    row: The projection.
  """
  in_axes, out_axes = axes(row)
  order = np.argsort((*row.batch_axes, *out_axes)).tolist()
  return jnp.expand_dims(jnp.transpose(features, order), in_axes)


def nameless(row: _linears.Linear) -> _linears.Linear:
  """Returns the axes of a row: rows of one shape share a compiled program."""
  return dataclasses.replace(
      row,
      layer=None,
      projection='',
      group='',
      path='',
      axes=(),
      own_scopes=0,
      attention=None,
      hf_name='',
  )


def to_matrix(value: jax.Array, row: _linears.Linear) -> jax.Array:
  """Returns a part as `float32[in, out]`."""
  in_axes, out_axes = axes(row)
  value = jnp.transpose(value, (*in_axes, *out_axes)).astype(jnp.float32)
  shape = value.shape[: len(in_axes)]
  return value.reshape(int(np.prod(shape)), -1)


def from_matrix(matrix: jax.Array, row: _linears.Linear, like: Any) -> Any:
  """Undoes `to_matrix`, for a part of the shape of `like`."""
  in_axes, out_axes = axes(row)
  order = (*in_axes, *out_axes)
  value = matrix.reshape([like.shape[axis] for axis in order])
  return jnp.transpose(value, np.argsort(order).tolist())


def _index(row: _rows.Row) -> tuple[Any, ...]:
  assert row.slot_axis is not None
  return (slice(None),) * row.slot_axis + (row.slot,)
