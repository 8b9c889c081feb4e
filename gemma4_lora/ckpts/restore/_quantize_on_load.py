"""Quantises weights piece by piece while a restore reads them.

It makes no second copy of a large array, and none in float32: arrays are cut
between groups. Large tables, which are half of a model, are read in pieces.
"""

from collections.abc import Iterator
import dataclasses
import functools
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gemma4_lora import quant
from gemma4_lora.ckpts.sources import _quantized_leaves
from gemma4_lora.ckpts.sources import _stream
from gemma4_lora.host import _memory
from gemma4_lora.host import _threads
from gemma4_lora.quant import _format

# Size of a piece in the file. Computing its codes takes 15 times this, for each
# of the pieces that are in work at once.
PIECE_BYTES = 2**21
_NUM_WORKERS = min(8, os.cpu_count() or 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Streamed:
  """An array that is read as it is quantised.

  Attributes:
    rows: Reads it.
    shape: Its shape.
    dtype: Its dtype in the file.
    multiple: The number of rows of a piece should be a multiple of it, as the
      file is cut there.
  """

  rows: _stream.Rows
  shape: tuple[int, ...]
  dtype: np.dtype
  multiple: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantized:
  """An array, quantised.

  Attributes:
    value: Codes and scales on the host.
    quality: How far they are from the array.
  """

  value: dict[str, Any]
  quality: _quantized_leaves.Quality


def streams(shape: tuple[int, ...], encoding: _format.Encoding) -> bool:
  """Whether an array can be quantised from some of its rows at a time."""
  return 0 in _free_axes(shape, encoding)


def quantize(
    array: np.ndarray | Streamed, encoding: _format.Encoding
) -> Quantized:
  """Returns an array quantised, on the host.

  Args:
    array: The array. What is streamed is read once.
    encoding: The encoding; `streams` must be true for a streamed array.
  """
  abstract = encoding.abstract(array.shape)
  value = jax.tree.map(lambda x: _memory.empty(x.shape, x.dtype), abstract)
  axis = 0 if isinstance(array, Streamed) else _axis(array.shape, encoding)
  squares, is_exact = np.zeros(2), True
  # One more piece is read while all workers are busy.
  for start, made, sums, same in _threads.in_order(
      functools.partial(_on_cpu, encoding=encoding),
      _pieces(array, axis, encoding),
      limit=_NUM_WORKERS + 1,
  ):
    for part, x in zip(
        jax.tree.leaves(value), jax.tree.leaves(made), strict=True
    ):
      # Groups, and with them scales, are some of the entries.
      first = start * part.shape[axis] // array.shape[axis]
      index = (slice(None),) * axis + (slice(first, first + x.shape[axis]),)
      part[index] = x
    squares += sums
    is_exact &= bool(same)
  error = math.sqrt(squares[0] / squares[1]) if squares[1] else 0.0
  quality = _quantized_leaves.Quality(
      encoding=encoding, error=error, is_exact=is_exact
  )
  return Quantized(value=value, quality=quality)


def fill(
    value: float, shape: tuple[int, ...], encoding: _format.Encoding
) -> dict[str, Any]:
  """Returns a constant, quantised."""
  one = quant.quantize(jnp.full(encoding.block, value, jnp.float32), encoding)
  return jax.tree.map(
      lambda x, like: np.broadcast_to(np.asarray(x).reshape(-1)[0], like.shape),
      one,
      encoding.abstract(shape),
  )


def _pieces(
    array: np.ndarray | Streamed, axis: int, encoding: _format.Encoding
) -> Iterator[tuple[int, np.ndarray]]:
  """Yields pieces along an axis, each with where it begins."""
  length = array.shape[axis]
  num_bytes = math.prod(array.shape) * array.dtype.itemsize
  size = length
  if axis in _free_axes(array.shape, encoding):
    multiple = encoding.block[axis]
    if isinstance(array, Streamed):
      multiple = math.lcm(multiple, array.multiple)
    size = length * PIECE_BYTES // max(1, num_bytes)
    size = multiple * _divisor(length // multiple, size // multiple)
  for start in range(0, length, size):
    stop = min(start + size, length)
    if isinstance(array, Streamed):
      yield start, array.rows.read(start, stop)
    else:
      yield start, array[(slice(None),) * axis + (slice(start, stop),)]


def _divisor(count: int, limit: int) -> int:
  """Returns a size of pieces: few different sizes, as each is compiled."""
  limit = max(1, min(count, limit))
  near = range(limit, limit // 2, -1)
  return next((n for n in near if count % n == 0), limit)


def _axis(shape: tuple[int, ...], encoding: _format.Encoding) -> int:
  """Returns along which axis to cut: the first that can be cut most."""
  free = _free_axes(shape, encoding) or [0]
  return max(free, key=lambda i: shape[i] // encoding.block[i])


def _free_axes(shape: tuple[int, ...], encoding: _format.Encoding) -> list[int]:
  """Returns the axes along which pieces have nothing in common."""
  return [
      i
      for i, (n, b) in enumerate(zip(shape, encoding.block, strict=True))
      if n > b and not (encoding.double and i == encoding.axis)
  ]


def _on_cpu(
    piece: tuple[int, np.ndarray], encoding: _format.Encoding
) -> tuple[int, Any, np.ndarray, np.ndarray]:
  """Returns codes and scales of a piece, and how far they are from it.

  Computed on the CPU: results are the same on any machine, and the
  accelerator's memory stays free for the model.

  Args:
    piece: Its first row, which is returned first; and its values, on the host.
    encoding: How.
  """
  start, host = piece
  with jax.default_device(_cpu()):
    array = jax.device_put(np.ascontiguousarray(host), _cpu())
    return start, *jax.device_get(_quantize(array, encoding))


@functools.cache
def _cpu() -> jax.Device:
  try:
    return jax.local_devices(backend='cpu')[0]
  except RuntimeError:  # JAX_PLATFORMS= may leave it out.
    return jax.local_devices()[0]


@jax.jit(static_argnames='encoding')
def _quantize(
    array: jax.Array, encoding: _format.Encoding
) -> tuple[Any, jax.Array, jax.Array]:
  """Returns codes and scales; sums of squares; whether nothing was lost."""
  made = quant.quantize(array, encoding)
  back = quant.dequantize(made, array.dtype)
  wide = array.astype(jnp.float32)
  difference = back.astype(jnp.float32) - wide
  sums = jnp.stack([jnp.sum(difference**2), jnp.sum(wide**2)])
  return made, sums, jnp.all(back == array)
