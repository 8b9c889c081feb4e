"""Quantised arrays: from an array to codes and scales, and back.

A quantised array stands in the tree of parameters as a dict:

```python
{'w': {'codes': int4[1536, 6144], 'scales': bf16[48, 6144]}}
```

Codes have the array's own shape. Along one axis a group of neighbours shares a
scale; `array ~ levels(codes) * scales`. With double quantisation `scales` is
such a dict in turn, and has an `offset`.
"""

from collections.abc import Mapping
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import qwix

from gemma4_lora.quant import _grid
from gemma4_lora.quant import _kinds
from gemma4_lora.quant import _nf4

_BY_DTYPE = {jnp.dtype(k.dtype): k for k in _kinds.KINDS.values()}


def is_quantized(value: Any) -> bool:
  """Whether a node of the parameters is a quantised array."""
  return isinstance(value, Mapping) and _kinds.CODES in value


def layout_of(value: Mapping[str, Any]) -> _kinds.Layout:
  """Returns how a quantised array is, from its shapes and dtypes.

  Args:
    value: A quantised array; of arrays or `jax.ShapeDtypeStruct`s.

  Raises:
    ValueError: Its codes are of a dtype that is none of ours.
  """
  codes, scales = value[_kinds.CODES], value[_kinds.SCALES]
  kind = _BY_DTYPE.get(jnp.dtype(codes.dtype))
  if kind is None:
    known = ', '.join(
        f'{k.name} ({k.dtype.__name__})' for k in _BY_DTYPE.values()
    )
    raise ValueError(
        f'Codes of dtype {codes.dtype} are of no format that g4.quant knows:'
        f' {known}.'
    )
  double = is_quantized(scales)
  shape = scales[_kinds.CODES].shape if double else scales.shape
  return _kinds.Layout(
      kind=kind.name,
      block=tuple(n // s for n, s in zip(codes.shape, shape, strict=True)),
      scale_dtype=jnp.dtype(jnp.float32 if double else scales.dtype),
      double=double,
  )


def quantize(array: Any, layout: _kinds.Layout) -> dict[str, Any]:
  """Returns an array as codes and scales.

  Args:
    array: Floating, of any shape that the layout's groups divide.
    layout: How to quantise it.
  """
  array = jnp.asarray(array)
  scale_dtype = jnp.dtype(layout.scale_dtype)
  match layout.kind:
    case 'int8':
      made = qwix.quantize(
          array.astype(jnp.float32),
          jnp.int8,
          tiled_axes=dict(enumerate(layout.block)),
      )
      codes, scales = made.qvalue, made.scale.astype(scale_dtype)
    case 'int4':
      codes, scales = _in_groups(_grid.quantize, array, layout, scale_dtype)
    case _:
      codes, scales = _in_groups(_nf4.quantize, array, layout, scale_dtype)
  if not layout.double:
    return {_kinds.CODES: codes, _kinds.SCALES: scales}
  return {_kinds.CODES: codes, _kinds.SCALES: _double(scales, layout.axis)}


def dequantize(value: Mapping[str, Any], dtype: Any) -> jax.Array:
  """Returns what codes and scales stand for.

  Args:
    value: A quantised array.
    dtype: Of the result: each entry is rounded to it once.
  """
  codes, scales = value[_kinds.CODES], value[_kinds.SCALES]
  if is_quantized(scales):
    scales = dequantize(scales, jnp.float32)
  # What two bfloat16 numbers multiply to is rounded once either way.
  compute = dtype if scales.dtype == dtype else jnp.float32
  levels = _levels(codes, compute)
  block = [n // s for n, s in zip(codes.shape, scales.shape, strict=True)]
  split = [
      m for n, b in zip(codes.shape, block, strict=True) for m in (n // b, b)
  ]
  spread = [m for n in scales.shape for m in (n, 1)]
  product = levels.reshape(split) * scales.astype(compute).reshape(spread)
  product = product.reshape(codes.shape)
  if _kinds.OFFSET in value:
    product += value[_kinds.OFFSET]
  return product.astype(dtype)


def dense(value: Any, dtype: Any = None) -> Any:
  """Returns an array as it is, and a quantised one as what it stands for.

  Args:
    value: Either; of arrays or `jax.ShapeDtypeStruct`s.
    dtype: Of what was quantised; None for bfloat16.
  """
  if not is_quantized(value):
    return value
  dtype = jnp.bfloat16 if dtype is None else dtype
  codes = value[_kinds.CODES]
  if isinstance(codes, jax.ShapeDtypeStruct):
    return jax.ShapeDtypeStruct(codes.shape, dtype)
  return dequantize(value, dtype)


def take(value: Any, rows: jax.Array, dtype: Any) -> jax.Array:
  """Returns rows of a table, dequantised after they were picked.

  Args:
    value: `[V, ...]`, quantised by row or not.
    rows: Integers, of any shape.
    dtype: Of the result, where the table is quantised.
  """
  if not is_quantized(value):
    return value[rows]
  shape = rows.shape
  # `dequantize` wants axes that scales and codes have in common.
  picked = jax.tree.map(lambda x: x[rows.reshape(-1)], value)
  return dequantize(picked, dtype).reshape(
      *shape, *value[_kinds.CODES].shape[1:]
  )


def slice_in_dim(value: Any, start: Any, size: int, *, axis: int) -> Any:
  """Returns a part of a quantised array, along an axis that has own scales.

  Args:
    value: The quantised array.
    start: Where the part begins.
    size: How long it is.
    axis: The axis.
  """
  return jax.tree.map(
      lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, axis), value
  )


def slice_rows(value: Any, start: Any, size: int, dtype: Any) -> jax.Array:
  """Returns neighbouring rows of a table, dequantised after they were cut.

  Args:
    value: `[V, ...]`, quantised by row or not.
    start: The first row.
    size: How many.
    dtype: Of the result, where the table is quantised.
  """
  cut = slice_in_dim(value, start, size, axis=0)
  return dequantize(cut, dtype) if is_quantized(value) else cut


def shape_of(value: Any) -> tuple[int, ...]:
  """Shape of an array, quantised or not."""
  return (value[_kinds.CODES] if is_quantized(value) else value).shape


def _in_groups(
    quantize_groups: Any,
    array: jax.Array,
    layout: _kinds.Layout,
    scale_dtype: Any,
) -> tuple[jax.Array, jax.Array]:
  """Returns codes and scales by a function of `[groups, entries of a group]`."""
  pairs = zip(array.shape, layout.block, strict=True)
  split = [m for n, b in pairs for m in (n // b, b)]
  order = [*range(0, 2 * array.ndim, 2), *range(1, 2 * array.ndim, 2)]
  groups = array.reshape(split).transpose(order)
  scales_shape = layout.scales_shape(array.shape)
  codes, scales = quantize_groups(
      groups.reshape(math.prod(scales_shape), -1), scale_dtype=scale_dtype
  )
  codes = codes.reshape(groups.shape).transpose(np.argsort(order).tolist())
  return codes.reshape(array.shape), scales.reshape(scales_shape)


def _double(scales: jax.Array, axis: int) -> dict[str, Any]:
  """Returns scales as int8, around the mean of those along an axis."""
  scales = scales.astype(jnp.float32)
  offset = scales.mean(axis, keepdims=True)
  layout = _kinds.Layout(
      kind='int8',
      block=tuple(n if i == axis else 1 for i, n in enumerate(scales.shape)),
      scale_dtype=jnp.float32,
  )
  return quantize(scales - offset, layout) | {_kinds.OFFSET: offset}


def _levels(codes: jax.Array, dtype: Any) -> jax.Array:
  """Returns what codes stand for, before their scale."""
  if codes.dtype == jnp.uint4:
    return _nf4.levels(codes, dtype)
  return codes.astype(dtype)


def nbytes(value: Any) -> int:
  """Bytes of the arrays of a tree, two codes of 4 bits in a byte."""
  return sum(-(-_kinds.num_bits(x) // 8) for x in jax.tree.leaves(value))
