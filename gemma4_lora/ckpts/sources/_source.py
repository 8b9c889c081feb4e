"""The interface of checkpoints of any format."""

import abc
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from concurrent import futures
import dataclasses
import functools
import math
import os
from typing import Any
from typing import Literal

from absl import logging
from etils import epath
import numpy as np
import orbax.checkpoint as ocp

from gemma4_lora import _trees
from gemma4_lora.ckpts.sources import _ahead
from gemma4_lora.ckpts.sources import _checkpoint_layouts
from gemma4_lora.ckpts.sources import _contents
from gemma4_lora.ckpts.sources import _stream
from gemma4_lora.host import _intact
from gemma4_lora.host import _memory
from gemma4_lora.host import _paths
from gemma4_lora.host.ranges import _read_ahead

Policy = Literal['error', 'warn']


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Source(abc.ABC):
  """One checkpoint on disk.

  Attributes:
    path: Where its arrays are.
    layout: `nested`, `flat`, `stacked`, `kauldron` or `hugging_face`.
    leaves: All leaves, by their path in the nested layout.
    nan: What to do about NaN, and scales below 0: 'error', or 'warn'; None not
      to look.
  """

  path: epath.Path
  layout: str
  leaves: Mapping[_trees.Path, _checkpoint_layouts.Stored]
  nan: Policy | None = 'error'

  @abc.abstractmethod
  def check(self, keys: set[_trees.Path], *, who: str) -> None:
    """Checks that the data of some arrays is there.

    Args:
      keys: Paths of arrays in the file.
      who: The transform that asks, for messages.

    Raises:
      ValueError: Data is missing.
    """

  def spelled(
      self, shapes: Mapping[_trees.Path, tuple[int, ...]]
  ) -> dict[_trees.Path, str]:
    """Returns the file's own names and shapes of leaves, where they differ.

    Args:
      shapes: Shapes of leaves of the model, by path below `params`.
    """
    del shapes
    return {}

  def read(
      self,
      args: Mapping[_trees.Path, ocp.RestoreArgs],
      filled: _memory.Filled = _memory.filled,
  ) -> dict[_trees.Path, Any]:
    """Reads some arrays, all at once, and nothing else.

    Args:
      args: How Orbax is to read each array, by the array's path in the file.
      filled: Allocates arrays that Orbax does not read.

    Returns:
      The arrays, by path in the file. Arrays with a `reader` are those of
      `filled`; `args` does not apply to them.

    Raises:
      ValueError: An array is damaged; or has NaN, and `nan` is 'error'.
    """
    with futures.ThreadPoolExecutor(self._num_readers) as pool:
      started = self._start(args, filled, pool)
      try:
        rest = {key: arg for key, arg in args.items() if key not in started}
        arrays = self._read_by_orbax(rest) if rest else {}
        for key in arrays:
          reader = functools.partial(self._looked_at, key, arrays[key])
          started[key] = pool.submit(self._checked, key, reader)
        done, _ = futures.wait(
            started.values(), return_when=futures.FIRST_EXCEPTION
        )
        for future in done:
          future.result()  # Raises, if it is the one that failed.
        return {key: future.result() for key, future in started.items()}
      except BaseException:
        # Without a network, each of the others would try for a minute.
        pool.shutdown(wait=False, cancel_futures=True)
        started.clear()  # The traceback may keep what is under way for long.
        raise

  def _start(
      self,
      keys: Iterable[_trees.Path],
      filled: _memory.Filled,
      pool: futures.Executor,
  ) -> dict[_trees.Path, futures.Future[Any]]:
    """Starts to read the arrays that have a `reader`.

    In a bucket, requests of all are under way at once, while there is room: each
    small array would take as long as an answer does.
    """
    started = {}
    for key in keys:
      future = _ahead.take(self.path, key)
      reader = future.result if future else self.reader(key, filled)
      if reader is not None:
        started[key] = pool.submit(self._checked, key, reader)
    return started

  def _checked(self, key: _trees.Path, reader: Callable[[], Any]) -> Any:
    """Reads an array, and compares its digest."""
    array = reader()
    if self.written(key) is not None and _contents.is_on_host(array):
      self.check_digest(key, _intact.digest(np.asarray(array)))
    return array

  def _looked_at(self, key: _trees.Path, array: Any) -> Any:
    """Returns an array that Orbax has read, once it is checked."""
    self.check_numbers(key, array)
    return array

  def look(self, key: _trees.Path) -> _memory.Look:
    """Returns what checks the pieces of an array as `check_numbers` does.

    Args:
      key: Path of the array in the file.
    """
    found = []

    def look(piece):
      if not found and self.check_numbers(key, piece):
        found.append(True)  # One warning is enough.

    return look

  def written(self, key: _trees.Path) -> _contents.Written | None:
    """Returns the digest of an array at its write, if known.

    Args:
      key: Path of the array in the file.
    """
    del key
    return None

  def check_digest(self, key: _trees.Path, found: str | None) -> None:
    """Compares an array's digests, if both are known.

    Args:
      key: Path of the array in the file.
      found: Its digest.

    Raises:
      ValueError: It differs from the written array.
    """
    wanted = self.written(key)
    if found is not None and wanted is not None and found != wanted.digest:
      raise ValueError(
          f'{self.path} is damaged: {_trees.join(key)} is not what was written:'
          f' its digest is {found}, and {wanted.digest} by {_contents.NAME}. Copy or'
          ' download the checkpoint again.'
      )

  def check_numbers(self, key: _trees.Path, array: Any) -> bool:
    """Checks that an array, or a part of it, can be weights.

    Args:
      key: Path of the array in the file.
      array: On the host or on devices.

    Returns:
      Whether there was a warning.

    Raises:
      ValueError: It has NaN, or scales below 0, and `nan` is 'error'.
    """
    if self.nan is None:
      return False
    problem = _contents.problem(_trees.join(key), array)
    if problem is None:
      return False
    if self.nan == 'error':
      raise ValueError(
          f'{self.path}: {problem}: the checkpoint is damaged, or its training'
          " went wrong. To load it all the same: PartialLoad(nan='warn')."
      )
    logging.warning('%s: %s.', self.path, problem)
    return True

  @property
  def _num_readers(self) -> int:
    """How many arrays are read at a time: on a disk, one for each core."""
    is_local = _paths.is_local(self.path)
    return (os.cpu_count() or 1) if is_local else _read_ahead.num_readers()

  @abc.abstractmethod
  def reader(
      self, key: _trees.Path, filled: _memory.Filled = _memory.filled
  ) -> Callable[[], Any] | None:
    """Returns a function that reads one array; None if Orbax does it better.

    It checks its numbers. In a bucket, it begins to read at once.

    Args:
      key: Path of the array in the file.
      filled: Makes the array.
    """

  def _read_by_orbax(
      self, args: Mapping[_trees.Path, ocp.RestoreArgs]
  ) -> dict[_trees.Path, Any]:
    """Reads arrays without a `reader`; only an `OrbaxSource` has such."""
    raise AssertionError(f'{type(self).__name__} reads all: {list(args)}')

  def open_rows(self, key: _trees.Path) -> _stream.Rows | None:
    """Opens one array to be read row by row; None if that saves no memory.

    Args:
      key: Path of the array in the file.
    """
    rows = self._open_rows(key)
    return None if rows is None else _CheckedRows(self, key, rows)

  @abc.abstractmethod
  def _open_rows(self, key: _trees.Path) -> _stream.Rows | None:
    """See `open_rows`."""


@dataclasses.dataclass(frozen=True)
class _CheckedRows:
  """Rows that are checked as they are read: their digest, if all come in order."""

  source: Source
  key: _trees.Path
  rows: _stream.Rows

  _digest: _intact.RowsDigest = dataclasses.field(
      default_factory=_intact.RowsDigest
  )

  def read(self, start: int, stop: int) -> np.ndarray:
    """See `Rows`."""
    rows = self.rows.read(start, stop)
    self.source.check_numbers(self.key, rows)
    written = self.source.written(self.key)
    if written is not None:
      self._digest.add(start, rows)
      self.source.check_digest(self.key, self._digest.of(written.num_rows))
    return rows


def num_bytes(leaf: _checkpoint_layouts.Stored) -> int:
  if leaf.parts:
    return sum(map(num_bytes, leaf.parts))
  return math.prod(leaf.shape) * leaf.dtype.itemsize
