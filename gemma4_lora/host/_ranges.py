"""Ranges of bytes of a file, on this machine or in a bucket.

A bucket answers late, and each connection has a part of what the machine can
take: so a range is read in pieces, of which many are under way at a time. They
come through tensorstore, which reads gs:// and s3://; other buckets by etils.
"""

import abc
import collections
from collections.abc import Iterator
from concurrent import futures
import dataclasses
import functools
import os
import pathlib
from typing import Any
from typing import Protocol

from etils import epath
import numpy as np
import tensorstore as ts

from gemma4_lora.host import _paths

# How many readers, and how many pieces of each, are under way at a time; and how
# many requests, beyond which tensorstore lets them wait: its own choice is 32, and
# a checkpoint has hundreds of tensors that take no longer than an answer does.
NUM_READERS = 32
_NUM_PIECES = 16
_NUM_REQUESTS = 128
_PIECE_BYTES = 2**22
# What is read of a file with its first bytes, where each request takes long.
_HEAD_BYTES = 2**20
# Linux reads no more than 2 GiB at once.
_LOCAL_BYTES = 2**30
# A minute in all, and not ten: tensorstore's own choice.
_RETRIES = {'max_retries': 7, 'initial_delay': '0.5s', 'max_delay': '16s'}
_DRIVERS = {'gs': 'gcs', 's3': 's3'}


class Reader(Protocol):
  """Reads bytes one after the other, from where it was opened."""

  def read_into(self, out: np.ndarray) -> None:
    """Reads as many bytes as an array has."""


@dataclasses.dataclass(frozen=True)
class File(abc.ABC):
  """A file whose ranges can be read, by several threads at a time.

  Attributes:
    path: Its path.
    size: In bytes.
  """

  path: epath.Path
  size: int

  @property
  @abc.abstractmethod
  def is_local(self) -> bool:
    """Whether it can be mapped, and waits for nothing."""

  @abc.abstractmethod
  def open_at(self, start: int, stop: int) -> Reader:
    """Returns a reader of a range; in a bucket, it begins to read at once.

    Args:
      start: The first byte.
      stop: The byte after the last.
    """


def open_file(path: epath.Path) -> File:
  """Opens a file; reads no more than what it begins with.

  Args:
    path: See `_paths.path`.

  Raises:
    OSError: There is no such file.
  """
  size = path.stat().length
  if _paths.is_local(path):
    return _Local(path, size)
  return _InBucket(path, size, head_bytes=min(_HEAD_BYTES, size))


def open_stream(path: epath.Path, start: int, stop: int) -> Any:
  """Opens a range of a file to be read from its start to its end.

  Args:
    path: See `_paths.path`.
    start: The first byte.
    stop: The byte after the last, which is there.

  Returns:
    What has the `read`, `readinto` and `close` of a binary file.
  """
  if _paths.is_local(path):
    file = path.open('rb')
    file.seek(start)
    return file
  return _InBucket(path, stop).open_at(start, stop)


def read(file: File, start: int, stop: int) -> bytes:
  """Returns a range of a file.

  Args:
    file: The file.
    start: The first byte.
    stop: The byte after the last.
  """
  out = np.empty(stop - start, np.uint8)
  file.open_at(start, stop).read_into(out)
  return out.tobytes()


@dataclasses.dataclass(frozen=True)
class _Local(File):
  """A file on this machine."""

  is_local = True

  def open_at(self, start: int, stop: int) -> Reader:
    """See `File`."""
    return _LocalReader(self.path, start)


@dataclasses.dataclass
class _LocalReader:
  path: epath.Path
  position: int

  def read_into(self, out: np.ndarray) -> None:
    """See `Reader`."""
    todo = memoryview(out.reshape(-1).view(np.uint8))
    with pathlib.Path(self.path).open('rb', buffering=0) as file:
      file.seek(self.position)
      while todo:
        count = file.readinto(todo[:_LOCAL_BYTES])
        if not count:
          raise _truncated(self.path)
        todo = todo[count:]
      self.position = file.tell()


@dataclasses.dataclass(frozen=True)
class _InBucket(File):
  """A file in a bucket; each of its bytes is asked for once.

  Attributes:
    head_bytes: What is read with its first byte, and kept.
  """

  head_bytes: int = 0

  is_local = False

  def open_at(self, start: int, stop: int) -> '_BucketReader':
    """See `File`."""
    return _BucketReader(self.path, self._pieces(start, stop))

  def _pieces(self, start: int, stop: int) -> Iterator[Any]:
    """Yields what gives the bytes of each piece, once it is asked for."""
    if start < self.head_bytes:
      yield _Done(self._head[start:stop])
      start = self.head_bytes
    while start < stop:
      end = min(start + _PIECE_BYTES, stop)
      yield self._read(start, end)
      start = end

  @functools.cached_property
  def _head(self) -> bytes:
    return self._read(0, self.head_bytes).result()

  @functools.cached_property
  def _read(self) -> Any:
    """Returns what starts to read a piece."""
    scheme, _, rest = os.fspath(self.path).partition('://')
    if scheme not in _DRIVERS:
      return functools.partial(_pool().submit, _read_by_etils, self.path)
    driver = _DRIVERS[scheme]
    bucket, _, name = rest.partition('/')
    spec = {'driver': driver, 'bucket': bucket}
    settings = {
        f'{driver}_request_retries': _RETRIES,
        f'{driver}_request_concurrency': {'limit': _NUM_REQUESTS},
    }
    store = ts.KvStore.open(spec | settings).result()
    return lambda start, stop: _Answer(
        self.path, store.read(name, byte_range=slice(start, stop))
    )


class _BucketReader:
  """Pieces that are read ahead of whom wants them."""

  def __init__(self, path: epath.Path, pieces: Iterator[Any]):
    self._path = path
    self._pieces = pieces
    self._started: collections.deque[Any] = collections.deque()
    self._rest = memoryview(b'')
    self._start_more()

  def read_into(self, out: np.ndarray) -> None:
    """See `Reader`."""
    todo = memoryview(out.reshape(-1).view(np.uint8))
    while todo:
      count = self.readinto(todo)
      if not count:
        raise _truncated(self._path)
      todo = todo[count:]

  def readinto(self, out: memoryview) -> int:
    """As that of a file."""
    data = self._some(len(out))
    # By NumPy, which lets other threads go on.
    np.copyto(
        np.frombuffer(out[: len(data)], np.uint8),
        np.frombuffer(data, np.uint8),
    )
    return len(data)

  def read(self, count: int) -> bytes:
    """As that of a file."""
    return bytes(self._some(count))

  def close(self) -> None:
    """As that of a file."""
    self._started.clear()

  def _some(self, count: int) -> memoryview:
    """Returns some of the next bytes; none at the end."""
    while not self._rest and self._started:
      self._rest = memoryview(self._started.popleft().result())
      self._start_more()
    data, self._rest = self._rest[:count], self._rest[count:]
    return data

  def _start_more(self) -> None:
    while len(self._started) < _NUM_PIECES:
      piece = next(self._pieces, None)
      if piece is None:
        return
      self._started.append(piece)


@dataclasses.dataclass(frozen=True)
class _Done:
  """Bytes that are there already."""

  value: bytes

  def result(self) -> bytes:
    return self.value


@dataclasses.dataclass(frozen=True)
class _Answer:
  """Bytes that tensorstore reads."""

  path: epath.Path
  future: ts.Future

  def result(self) -> bytes:
    try:
      answer = self.future.result()
    except ValueError as e:
      if str(e).startswith('OUT_OF_RANGE'):
        raise _truncated(self.path) from e
      raise  # What the server or the network said.
    if answer.state == 'missing':
      raise FileNotFoundError(f'{self.path} is not there any more.')
    return answer.value


@functools.cache
def _pool() -> futures.ThreadPoolExecutor:
  return futures.ThreadPoolExecutor(NUM_READERS, thread_name_prefix='g4-ranges')


def _read_by_etils(path: epath.Path, start: int, stop: int) -> bytes:
  with path.open('rb') as file:
    file.seek(start)
    data = file.read(stop - start)
  if len(data) < stop - start:
    raise _truncated(path)
  return data


def _truncated(path: epath.Path) -> ValueError:
  return ValueError(
      f'The checkpoint is truncated: {path} ends too early. Copy or download it'
      ' again.'
  )
