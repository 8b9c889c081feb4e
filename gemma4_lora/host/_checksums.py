"""Checksums of arrays from a sample of their content."""

from collections.abc import Iterator
from collections.abc import Mapping
import math
from typing import Any

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

# Per leaf. Smaller ones are read whole.
_SAMPLES = 4096
# A piece up to this size is copied to the host and sampled there, which is
# faster than compiling a program for its shape.
_SMALL_BYTES = 2**16


def checksums(
    leaves: Mapping[str, Any], *, of_all: bool = False
) -> dict[str, str]:
  """Returns a checksum of each array, from up to 4096 of its entries.

  The same for any sharding, number of devices and number of processes: a sum
  over the sampled entries, of a hash of the entry's bits and position. All
  processes must call it, with the same leaves.

  Args:
    leaves: Arrays of JAX or of numpy.
    of_all: Whether to read all entries, which takes longer.
  """
  samples = None if of_all else _SAMPLES
  taken = {name: list(_take(leaf, samples)) for name, leaf in leaves.items()}
  # One transfer for all, rather than one per leaf.
  taken = jax.device_get(taken)
  sums = np.array(
      [sum(_hash(*part) for part in parts) % 2**32 for parts in taken.values()],
      np.uint32,
  )
  if jax.process_count() > 1:
    # Modulo 2**32, by the dtype.
    everyone = np.asarray(multihost_utils.process_allgather(sums))
    sums = np.sum(everyone, axis=0, dtype=np.uint32)
  return {name: f'{x:08x}' for name, x in zip(taken, sums, strict=True)}


class RowsChecksum:
  """The checksum of an array whose rows come one after the other."""

  def __init__(self, shape: tuple[int, ...], dtype: np.dtype):
    """Creates it.

    Args:
      shape: Shape of the whole array.
      dtype: Dtype for the checksum; rows may come in another one.
    """
    self._dtype = dtype
    self._index = _index(shape, _SAMPLES)
    self._positions = _positions(self._index, _strides(shape))
    self._sum = 0

  def add(self, start: int, rows: np.ndarray) -> None:
    """Takes rows in; no copy of them."""
    first, *others = self._index or [np.zeros(1, np.int64)]
    here = (first >= start) & (first < start + len(np.atleast_1d(rows)))
    values = np.atleast_1d(rows)[np.ix_(first[here] - start, *others)]
    positions = np.atleast_1d(self._positions)[here]
    self._sum += _hash(values.astype(self._dtype), None, positions)

  @property
  def value(self) -> str:
    return f'{self._sum % 2**32:08x}'


def _take(
    leaf: Any, samples: int | None
) -> Iterator[tuple[Any, Any, np.ndarray]]:
  """Yields sampled entries and their positions in the flat array.

  Each entry once, in whichever process has it.

  Args:
    leaf: An array.
    samples: How many entries; None for all.

  Yields:
    Entries on a device or the host; the index of those still to be picked;
    positions.
  """
  index, strides = _index(leaf.shape, samples), _strides(leaf.shape)
  if not isinstance(leaf, jax.Array):
    yield np.asarray(leaf), tuple(index), _positions(index, strides)
    return
  for shard in leaf.addressable_shards:
    if shard.replica_id != 0:
      continue
    here, local = [], []
    for places, part, n in zip(index, shard.index, leaf.shape, strict=True):
      start, stop, _ = part.indices(n)
      inside = places[(places >= start) & (places < stop)]
      here.append(inside)
      local.append((inside - start).astype(np.int32))
    if not all(map(len, here)):
      continue
    # One device's own piece: no array is gathered to be sampled.
    if samples is None or shard.data.nbytes <= _SMALL_BYTES:
      yield shard.data, tuple(local), _positions(here, strides)
    else:
      yield _pick(shard.data, tuple(local)), None, _positions(here, strides)


@jax.jit
def _pick(array: jax.Array, index: tuple[jax.Array, ...]) -> jax.Array:
  return array[jnp.ix_(*index)] if index else array


def _index(shape: tuple[int, ...], samples: int | None) -> list[np.ndarray]:
  """Returns the positions to sample along each axis."""
  return [
      np.linspace(0, n - 1, count).round().astype(np.int64)
      for n, count in zip(shape, _counts(shape, samples), strict=True)
  ]


def _strides(shape: tuple[int, ...]) -> list[int]:
  return [math.prod(shape[d + 1 :]) for d in range(len(shape))]


def _counts(shape: tuple[int, ...], samples: int | None) -> list[int]:
  """Returns how many positions to sample along each axis."""
  counts = list(shape)
  while samples is not None and math.prod(counts) > samples:
    longest = counts.index(max(counts))
    counts[longest] = (counts[longest] + 1) // 2
  return counts


def _positions(index: list[np.ndarray], strides: list[int]) -> np.ndarray:
  total = np.zeros((1,) * len(index), np.uint64)
  for places, stride in zip(np.ix_(*index), strides, strict=True):
    total = total + places.astype(np.uint64) * np.uint64(stride)
  return total


def _hash(values: np.ndarray, index: Any, positions: np.ndarray) -> int:
  """Returns the sum of a hash (MurmurHash3's finaliser) of each entry."""
  if index:
    values = values[np.ix_(*index)]
  values = np.ascontiguousarray(values).reshape(-1)
  bits = values.view(f'u{values.dtype.itemsize}').astype(np.uint64)
  x = bits + positions.reshape(-1) * np.uint64(0x9E3779B97F4A7C15)
  for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
    x = (x ^ (x >> np.uint64(33))) * np.uint64(factor)
  x ^= x >> np.uint64(33)
  return int(np.sum(x & np.uint64(0xFFFFFFFF), dtype=np.uint64))
