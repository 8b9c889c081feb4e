"""jax arrays in this machine's memory, filled in place.

On a CPU the host's memory is the device's. jax takes a NumPy array as it is only
for as long as nothing may overwrite it, and copies all of them at once in the
first training step, which may. So XLA allocates, and a callback fills.
https://docs.jax.dev/en/latest/jax.experimental.buffer_callback.html
"""

import functools
import itertools
import math

import jax
from jax.experimental import buffer_callback
import jax.numpy as jnp
import numpy as np

from gemma4_lora.host import _memory

# Less is copied in no time, and each shape takes a program.
_MIN_BYTES = 2**22

# Fill functions of running calls, and errors of failed ones.
_fills: dict[int, _memory.Fill] = {}
_errors: dict[int, Exception] = {}
_numbers = itertools.count()


def filled(
    shape: tuple[int, ...], dtype: np.dtype, fill: _memory.Fill
) -> np.ndarray | jax.Array:
  """Returns an array that a function fills.

  Args:
    shape: The array's shape.
    dtype: The array's dtype.
    fill: Called once with the memory. Its errors are raised.

  Returns:
    If this process has one device, which is a CPU, and the array is large: an
    array of jax. Else one of NumPy.
  """
  if (
      not _is_one_cpu()
      or not jnp.issubdtype(dtype, jnp.floating)
      or jax.dtypes.canonicalize_dtype(dtype) != dtype
      or math.prod(shape) * dtype.itemsize < _MIN_BYTES
  ):
    return _memory.filled(shape, dtype, fill)
  number = next(_numbers)
  _fills[number] = fill
  try:
    array = jax.block_until_ready(_make(np.int32(number), shape, dtype))
  finally:
    del _fills[number]
  if number in _errors:
    raise _errors.pop(number)
  return array


def _is_one_cpu() -> bool:
  device, *others = jax.local_devices()
  return device.platform == 'cpu' and not others


@functools.partial(jax.jit, static_argnums=(1, 2))
def _make(number, shape, dtype):
  out = jax.ShapeDtypeStruct(shape, dtype)
  return buffer_callback.buffer_callback(_fill, out)(number)


def _fill(ctx, out, number) -> None:
  del ctx
  number = int(np.asarray(number)[()])
  memory = np.asarray(out)
  _memory.advise_huge(memory)
  try:
    _fills[number](memory)
  except Exception as e:  # An error of the file; jax would turn it into a text.
    _errors[number] = e
