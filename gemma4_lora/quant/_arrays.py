"""Quantised arrays: from an array to codes and scales, and back.

A quantised array is a dict in the tree of parameters:

```python
{'w': {'codes': int4[1536, 6144], 'scales': bf16[48, 6144]}}
```

Codes have the array's own shape. Along one axis a group of neighbours shares a
scale; `array ~ levels(codes) * scales`. With double quantisation `scales` is
itself such a dict, with an `offset`. Name and dtype of the codes identify the
format.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gemma4_lora.quant import _format
from gemma4_lora.quant import _formats


def is_quantized(value: Any) -> bool:
  """Whether a node of the parameters is a quantised array."""
  return isinstance(value, Mapping) and any(map(_format.is_codes, value))


def codes_of(value: Mapping[str, Any]) -> Any:
  """Returns the codes of a quantised array.

  Args:
    value: A quantised array; of arrays or `jax.ShapeDtypeStruct`s.

  Raises:
    ValueError: The format is unknown.
  """
  return value[_formats.format_of(value).codes_name]


def encoding_of(value: Mapping[str, Any]) -> _format.Encoding:
  """Returns how a quantised array is held, from its shapes and dtypes.

  Args:
    value: A quantised array; of arrays or `jax.ShapeDtypeStruct`s.

  Raises:
    ValueError: The format is unknown.
  """
  scales, scales_format = value[_format.SCALES], None
  scale_dtype = getattr(scales, 'dtype', jnp.float32)
  if is_quantized(scales):
    scales_format = _formats.format_of(scales)
    scales = codes_of(scales)
  pairs = zip(codes_of(value).shape, scales.shape, strict=True)
  return _format.Encoding(
      format=_formats.format_of(value),
      block=tuple(n // s for n, s in pairs),
      scale_dtype=jnp.dtype(scale_dtype),
      scales_format=scales_format,
  )


def quantize(array: Any, encoding: _format.Encoding) -> dict[str, Any]:
  """Returns an array as codes and scales.

  Args:
    array: Floating, of any shape that the encoding's groups divide.
    encoding: How to quantise it: `g4.quant.Int8().encoding(…)`.
  """
  codes, scales = encoding.format.encode(jnp.asarray(array), encoding)
  held: Any = scales
  if encoding.double:
    held = _around_mean(scales.astype(jnp.float32), encoding)
  return {encoding.format.codes_name: codes, _format.SCALES: held}


def _around_mean(
    scales: jax.Array, encoding: _format.Encoding
) -> dict[str, Any]:
  """Returns quantised scales, around their mean along an axis."""
  offset = scales.mean(encoding.axis, keepdims=True)
  inner = encoding.of_scales(scales.shape)
  assert inner is not None
  return quantize(scales - offset, inner) | {_format.OFFSET: offset}


def dequantize(value: Mapping[str, Any], dtype: Any) -> jax.Array:
  """Returns the dequantised array.

  Args:
    value: A quantised array.
    dtype: Dtype of the result: each entry is rounded to it once.

  Raises:
    ValueError: The format is unknown.
  """
  codes, scales = codes_of(value), value[_format.SCALES]
  if is_quantized(scales):
    scales = dequantize(scales, jnp.float32)
  # The product of two bfloat16 numbers is rounded once in both cases.
  compute = dtype if scales.dtype == dtype else jnp.float32
  levels = _formats.format_of(value).levels(codes, compute)
  block = [n // s for n, s in zip(codes.shape, scales.shape, strict=True)]
  split = [
      m for n, b in zip(codes.shape, block, strict=True) for m in (n // b, b)
  ]
  spread = [m for n in scales.shape for m in (n, 1)]
  product = levels.reshape(split) * scales.astype(compute).reshape(spread)
  product = product.reshape(codes.shape)
  if _format.OFFSET in value:
    product += value[_format.OFFSET]
  return product.astype(dtype)


def dense(value: Any, dtype: Any = None) -> Any:
  """Returns an array unchanged, and a quantised one dequantised.

  Args:
    value: Either; of arrays or `jax.ShapeDtypeStruct`s.
    dtype: Dtype of a dequantised array; None for bfloat16.
  """
  if not is_quantized(value):
    return value
  dtype = jnp.bfloat16 if dtype is None else dtype
  codes = codes_of(value)
  if isinstance(codes, jax.ShapeDtypeStruct):
    return jax.ShapeDtypeStruct(codes.shape, dtype)
  return dequantize(value, dtype)


def take(value: Any, rows: jax.Array, dtype: Any) -> jax.Array:
  """Returns rows of a table, dequantised after they were picked.

  Args:
    value: `[V, ...]`, quantised by row or not.
    rows: Integers, of any shape.
    dtype: The result's dtype, where the table is quantised.
  """
  if not is_quantized(value):
    return value[rows]
  shape = rows.shape
  # `dequantize` wants axes that scales and codes have in common.
  picked = jax.tree.map(lambda x: x[rows.reshape(-1)], value)
  return dequantize(picked, dtype).reshape(*shape, *shape_of(value)[1:])


def slice_in_dim(value: Any, start: Any, size: int, *, axis: int) -> Any:
  """Returns a part of a quantised array along an axis with separate scales.

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
    dtype: The result's dtype, where the table is quantised.
  """
  cut = slice_in_dim(value, start, size, axis=0)
  return dequantize(cut, dtype) if is_quantized(value) else cut


def shape_of(value: Any) -> tuple[int, ...]:
  """Shape of an array, quantised or not."""
  return (codes_of(value) if is_quantized(value) else value).shape


def nbytes(value: Any) -> int:
  """Bytes of the arrays of a tree, two codes of 4 bits in a byte."""
  return sum(-(-_format.num_bits(x) // 8) for x in jax.tree.leaves(value))


def stored(value: Any) -> Any:
  """Returns an array as files hold it: tensorstore lacks some dtypes.

  Args:
    value: Quantised or not.
  """
  if not is_quantized(value):
    return value
  cls = _formats.format_of(value)
  codes = codes_of(value).astype(cls.stored_dtype or cls.codes_dtype)
  scales = stored(value[_format.SCALES])
  return {**value, cls.codes_name: codes, _format.SCALES: scales}
