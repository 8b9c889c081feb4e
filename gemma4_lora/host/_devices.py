"""Moves values from the host's memory to an array's devices."""

from concurrent import futures
import os
from typing import Any

import jax
import numpy as np

# Smaller arrays are placed at the same time as others.
_LARGE_BYTES = 2**27


def place(host: Any, like: Any) -> Any:
  """Returns a value as an array on the devices of another.

  Args:
    host: The whole value, of which each device gets its part; an array that
      Orbax placed; or one of `_xla_memory.filled`.
    like: The array, or abstract array, that it replaces. May have been freed.
  """
  if isinstance(like, np.ndarray):
    return np.array(host, like.dtype)
  is_uncommitted = isinstance(like, jax.Array) and not like.committed
  if isinstance(host, jax.Array):
    if host.committed:
      return host
    sharding = sharding_of(like)
    is_there = sharding.device_set == host.sharding.device_set
    if is_there and host.dtype == like.dtype:
      if is_uncommitted:
        return host
      return jax.make_array_from_single_device_arrays(
          host.shape, sharding, [host]
      )
  host = np.asarray(host, like.dtype)
  if is_uncommitted:
    # An uncommitted array may still move to another one's device.
    array = jax.device_put(host)
    if array.sharding == like.sharding:
      return array
  sharding = sharding_of(like)
  if host.nbytes >= _LARGE_BYTES:
    return _cut(host, sharding)
  return jax.make_array_from_callback(
      host.shape, sharding, lambda index: host[index]
  )


def _cut(host: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
  """Gives each device of this process its part, several at a time."""
  parts = sharding.addressable_devices_indices_map(host.shape)

  def put(device):
    # A training step may overwrite its state, so the NumPy buffer must be
    # copied.
    part = jax.device_put(host[parts[device]], device, may_alias=False)
    return jax.block_until_ready(part)

  with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    return jax.make_array_from_single_device_arrays(
        host.shape, sharding, list(pool.map(put, parts))
    )


def sharding_of(like: Any) -> jax.sharding.Sharding:
  """Returns the sharding of an array; the first device if it has none."""
  return getattr(like, 'sharding', None) or jax.sharding.SingleDeviceSharding(
      jax.local_devices()[0]
  )
