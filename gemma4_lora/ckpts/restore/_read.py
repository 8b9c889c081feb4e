"""Carries a plan out: reads arrays into the state's own dtype and sharding."""

import collections
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from gemma4_lora import _trees
from gemma4_lora import host
from gemma4_lora.ckpts.restore import _quantize_on_load
from gemma4_lora.ckpts.restore import _restore_plan
from gemma4_lora.ckpts.sources import _checkpoint_layouts
from gemma4_lora.ckpts.sources import _open
from gemma4_lora.gemma4 import _names
from gemma4_lora.host import _devices
from gemma4_lora.host import _threads
from gemma4_lora.host import _xla_memory

# Arrays are read and decompressed in parallel within a group, two groups at a time:
# an array that is most of a group keeps one core busy. Two such groups, one
# that waits and one that is placed are the memory that a restore needs beside
# the model: a fraction of its size, or a small minimum. A larger array is a
# group of its own, and first, while there is room.
_NUM_READING = 2
# From a bucket, more of half the size: it must not wait while a group is placed.
_NUM_FROM_BUCKET = 3
_MIN_GROUP_BYTES = 2**26
_GROUPS_PER_MODEL = 128


def read(
    source: _open.Source,
    loads: Sequence[_restore_plan.Load],
    old: Mapping[_trees.Path, Any],
    *,
    group_bytes: int | None = None,
    whole: bool = False,
) -> Iterator[dict[_trees.Path, Any]]:
  """Reads the leaves of a plan, the largest first, then other large ones.

  Each array of the file is read and decompressed once, for any number of
  devices and of leaves in it.

  Args:
    source: The checkpoint.
    loads: What to read.
    old: The leaves of the state that are replaced, by path. They give dtype and
      sharding.
    group_bytes: Size of a group; two groups are read at a time. A larger array
      is a group. `None`: chosen by the size of the model.
    whole: Whether weights that are to be quantised must come whole.

  Yields:
    New values by path: arrays as wanted, or values on the host, which are for
    `_devices.place`. The caller may free an old array, then place its value,
    so that no device holds both. Weights to be quantised come as in the file.
    Large ones are not read yet: `_quantize_on_load.Streamed`, which must be
    used before the next value is requested.
  """
  by_key: dict[_trees.Path, list[_restore_plan.Load]] = {}
  for load in loads:
    for x in load.arrays:
      by_key.setdefault(x.stored.key, []).append(x)

  def size(key):
    return sum(_open.num_bytes(x.stored) for x in by_key[key])

  ordered = sorted(by_key, key=size, reverse=True)
  if group_bytes is None:
    group_bytes = _MIN_GROUP_BYTES
    if not any(load.quantizes for load in loads):
      total = sum(map(size, ordered))
      group_bytes = max(group_bytes, total // _GROUPS_PER_MODEL)
  num_reading = _NUM_READING
  if not host.is_local(source.path):
    num_reading, group_bytes = _NUM_FROM_BUCKET, group_bytes // 2
  streamed = set()
  for key in ordered:
    if size(key) > group_bytes:
      for path, value in streamed_leaves(source, by_key[key], whole):
        streamed.add(key)
        yield {path: value}
  ordered = [key for key in ordered if key not in streamed]
  groups = [
      {key: _restore_args(by_key[key], old) for key in keys}
      for keys in _apart(
          _groups(ordered, size, group_bytes),
          size,
          group_bytes,
          distance=num_reading + 1,
      )
  ]
  read_group = functools.partial(source.read, filled=_xla_memory.filled)
  for arrays in _threads.in_order(read_group, groups, limit=num_reading):
    new = {}
    while arrays:
      key, array = arrays.popitem()
      for load in by_key[key]:
        index = load.stored.index
        if index is not None or load.quantizes:
          array = np.asarray(array)
        new[load.model.path] = array if index is None else array[index]
      del array  # It may be half of the model: not held while others are read.
    yield new
    del new


def streamed_leaves(
    source: _open.Source, loads: Sequence[_restore_plan.Load], whole: bool
) -> Iterator[tuple[_trees.Path, Any]]:
  """Yields the leaves of a large array, to be read as they are quantised.

  Args:
    source: The checkpoint.
    loads: All that the array holds; nothing is yielded if it must be read at
      once.
    whole: Whether leaves other than tables must be.
  """
  load, *others = loads
  stored, encoding = load.stored, load.model.encoding
  if not all(x.quantizes for x in loads) or encoding is None:
    return
  if stored.index is not None:
    # Layers in one array: one after the other.
    rows = source.open_rows(stored.key)
    if rows is not None:
      for x in sorted(loads, key=_index):
        yield x.model.path, rows.read(_index(x), _index(x) + 1)[0]
    return
  is_table = _names.is_table(load.model.path)
  if others or whole and not is_table:
    return
  if not _quantize_on_load.streams(stored.shape, encoding):
    return
  rows = source.open_rows(stored.key)
  if rows is not None:
    chunk = (stored.chunk_shape or (1,))[0]
    yield load.model.path, _quantize_on_load.Streamed(
        rows=rows,
        shape=stored.shape,
        dtype=stored.dtype,
        multiple=chunk if chunk < stored.shape[0] else 1,
    )


def _index(load: _restore_plan.Load) -> int:
  assert load.stored.index is not None
  return load.stored.index


def _groups(keys: Sequence, size, limit: int) -> Iterator[list]:
  group, total = [], 0
  for key in keys:
    if group and total + size(key) > limit:
      yield group
      group, total = [], 0
    group.append(key)
    total += size(key)
  if group:
    yield group


def _apart(
    groups: Iterable[list], size, limit: int, *, distance: int
) -> Iterator[list]:
  """Puts groups of a large array so far apart that no two are held at a time."""
  large, small = collections.deque(), collections.deque()
  for keys in groups:
    (large if sum(map(size, keys)) > limit else small).append(keys)
  while large or small:
    if large:
      yield large.popleft()
    # While one is placed, others are read already.
    for _ in range(min(len(small), distance)):
      yield small.popleft()


def _restore_args(
    loads: Sequence[_restore_plan.Load], old: Mapping[_trees.Path, Any]
) -> ocp.RestoreArgs:
  """Returns how Orbax should read the array of some leaves."""
  load, *others = loads
  like = old.get(load.model.path)
  if (
      not others
      and load.stored.index is None
      and isinstance(like, (jax.Array, jax.ShapeDtypeStruct))
      and getattr(like, 'committed', True)
      and not load.quantizes
      # Codes of 4 bits may be wider in the file.
      and jnp.issubdtype(load.stored.dtype, jnp.floating)
      and _cuts_along_chunks(load.stored, _devices.sharding_of(like))
  ):
    return ocp.ArrayRestoreArgs(
        restore_type=jax.Array,
        dtype=load.model.dtype,
        sharding=_devices.sharding_of(like),
        global_shape=load.model.shape,
        strict=True,
    )
  # In the file's dtype: several leaves may want it in several.
  return ocp.RestoreArgs(restore_type=np.ndarray)


def _cuts_along_chunks(
    stored: _checkpoint_layouts.Stored, sharding: jax.sharding.Sharding
) -> bool:
  """Whether each compressed chunk of the file is needed by one device only.

  Orbax would decompress a chunk once for each device that needs a part of it,
  all of them at the same time. Released checkpoints have one chunk per array,
  which is then better read to the host and cut there.
  """
  chunks = stored.chunk_shape or stored.shape
  shard = sharding.shard_shape(stored.shape)
  return all(
      s == n or s % c == 0
      for n, s, c in zip(stored.shape, shard, chunks, strict=True)
  )
