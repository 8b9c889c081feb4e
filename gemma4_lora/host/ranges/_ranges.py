"""Ranges of bytes of a file, on this machine or in a bucket."""

import abc
from collections.abc import Iterable
from collections.abc import Iterator
import dataclasses
import functools
import pathlib
from typing import Any
from typing import Protocol

from etils import epath
import numpy as np

from gemma4_lora.host import _paths
from gemma4_lora.host.ranges import _bucket_reads
from gemma4_lora.host.ranges import _neighbours
from gemma4_lora.host.ranges import _read_ahead

# What is read of a file with its first bytes, where each request takes long.
_HEAD_BYTES = 2**20
# Linux reads no more than 2 GiB at once.
_LOCAL_BYTES = 2**30


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

  @abc.abstractmethod
  def expect(self, spans: Iterable[_bucket_reads.Span]) -> None:
    """Announces all reads; in a bucket, small neighbours are read together.

    Args:
      spans: First byte of each, and the byte after the last.
    """


def open_file(path: epath.Path) -> File:
  """Opens a file; reads only its first bytes.

  Args:
    path: See `_paths.path`.

  Raises:
    OSError: There is no such file.
  """
  size = path.stat().length
  if _paths.is_local(path):
    return _Local(path, size)
  return _InBucket(path, size, head_bytes=min(_HEAD_BYTES, size))


def expected(
    path: epath.Path, spans: Iterable[_bucket_reads.Span]
) -> File | None:
  """Returns a file with all its future reads announced; None on a disk.

  Args:
    path: See `_paths.path`.
    spans: See `File.expect`.
  """
  if _paths.is_local(path):
    return None
  spans = list(spans)
  file = _InBucket(path, max(stop for _, stop in spans))
  file.expect(spans)
  return file


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
  file = _InBucket(path, stop)
  file._state.asked = start
  return file.open_at(start, stop)


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

  def expect(self, spans: Iterable[_bucket_reads.Span]) -> None:
    """See `File`."""


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
          raise _bucket_reads.truncated(self.path)
        todo = todo[count:]
      self.position = file.tell()


@dataclasses.dataclass
class _State:
  """What changes while a file is read.

  Attributes:
    neighbours: What is read together.
    asked: About how many bytes were asked for: no lock counts them.
  """

  neighbours: _neighbours.Neighbours | None = None
  asked: int = 0


@dataclasses.dataclass(frozen=True)
class _InBucket(File):
  """A file in a bucket; each of its bytes is asked for once.

  Attributes:
    head_bytes: What is read with its first byte, and kept.
  """

  head_bytes: int = 0
  _state: _State = dataclasses.field(
      default_factory=_State, repr=False, compare=False
  )

  is_local = False

  def open_at(self, start: int, stop: int) -> _read_ahead.Reader:
    """See `File`."""
    return _read_ahead.Reader(
        self.path,
        self._spans(start, stop),
        self._start,
        ahead=lambda: _read_ahead.ahead_bytes(self.size - self._state.asked),
    )

  def expect(self, spans: Iterable[_bucket_reads.Span]) -> None:
    """See `File`."""
    outside = [(a, b) for a, b in spans if a >= self.head_bytes]
    self._state.neighbours = _neighbours.Neighbours(outside)

  def _spans(self, start: int, stop: int) -> Iterator[_bucket_reads.Span]:
    if start < self.head_bytes:
      yield start, min(stop, self.head_bytes)
      start = self.head_bytes
    yield from _read_ahead.cut(start, stop)

  def _start(self, start: int, stop: int) -> _bucket_reads.Piece:
    """Starts to read a span of `_spans`."""
    self._state.asked += stop - start
    if start < self.head_bytes:
      return _Done(self._head[start:stop])
    neighbours, piece = self._state.neighbours, None
    if neighbours is not None:
      piece = neighbours.take((start, stop), self._begin)
    return self._begin(start, stop) if piece is None else piece

  @functools.cached_property
  def _head(self) -> bytes:
    return bytes(self._begin(0, self.head_bytes).result())

  @functools.cached_property
  def _begin(self) -> _bucket_reads.Begin:
    return _bucket_reads.begin(self.path)


@dataclasses.dataclass(frozen=True)
class _Done:
  """Bytes that are there already."""

  value: bytes

  def result(self) -> bytes:
    return self.value
