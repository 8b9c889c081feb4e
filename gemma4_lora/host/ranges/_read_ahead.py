"""A span of a file in a bucket, read some pieces ahead.

A bucket has latency, and one connection cannot fill the machine's bandwidth. So
a span is read in pieces, many at a time.

Pieces in progress take memory beside the restored model. All readers of a
process share a bound on it, a part of what is left to read. Each reader may
always read its next piece, so that none waits for another.
"""

import collections
from collections.abc import Callable
from collections.abc import Iterable
import heapq
import itertools
import os
import threading
import weakref

from etils import epath
import numpy as np

from gemma4_lora.host.ranges import _bucket_reads

# How many readers, and how many pieces of each, are under way at a time.
_LEAST_READERS, _MOST_READERS = 2, 16
_NUM_PIECES = 32
PIECE_BYTES = 2**22
# The bound on what is under way, as a part of what is left of a file: memory that
# is for that is not in use yet. The least is 0.16 s of 200 MB/s: four answers of
# 40 ms.
_LEAST_AHEAD, _MOST_AHEAD = 2**25, 2**27
_AHEAD_OF_REST = 8


def ahead_bytes(left: int) -> int:
  """Returns how much of a file may be under way at a time.

  Args:
    left: How many of its bytes were not asked for.
  """
  return min(max(_LEAST_AHEAD, left // _AHEAD_OF_REST), _MOST_AHEAD)


def num_readers() -> int:
  """Returns how many arrays of a group to read at once.

  Few: each has many pieces under way, and the C library keeps memory for each thread
  that freed some.
  """
  half = (os.cpu_count() or 1) // 2
  return min(max(_LEAST_READERS, half), _MOST_READERS)


def cut(start: int, stop: int) -> list[_bucket_reads.Span]:
  """Returns the pieces of a span."""
  starts = range(start, stop, PIECE_BYTES)
  return [(x, min(x + PIECE_BYTES, stop)) for x in starts]


class Reader:
  """Reads a span, some pieces ahead of its reader."""

  def __init__(
      self,
      path: epath.Path,
      spans: Iterable[_bucket_reads.Span],
      begin: _bucket_reads.Begin,
      *,
      ahead: Callable[[], int],
  ):
    """Creates it, and starts to read as far as there is room.

    Args:
      path: For messages.
      spans: The pieces.
      begin: Starts to read one.
      ahead: Returns the bound as it is now, see `ahead_bytes`.
    """
    self._path, self._begin, self._ahead = path, begin, ahead
    self._todo = collections.deque(spans)
    self._started: collections.deque[tuple[int, _bucket_reads.Piece]] = (
        collections.deque()
    )
    self._rest, self._held = memoryview(b''), 0
    self._number, self._is_waiting = next(_numbers), False
    self._lock = threading.Lock()  # Guards what any thread starts.
    self._start_more()

  def read_into(self, out: np.ndarray) -> None:
    """Reads as many bytes as an array has."""
    todo = memoryview(out.reshape(-1).view(np.uint8))
    while todo:
      count = self.readinto(todo)
      if not count:
        self.close()
        raise _bucket_reads.truncated(self._path)
      todo = todo[count:]

  def readinto(self, out: memoryview) -> int:
    """As that of a file."""
    data = self._some(len(out))
    # By NumPy, which lets other threads go on.
    np.copyto(
        np.frombuffer(out[: len(data)], np.uint8),
        np.frombuffer(data, np.uint8),
    )
    count = len(data)
    del data
    self._drop_if_empty()
    return count

  def read(self, count: int) -> bytes:
    """As that of a file."""
    data = bytes(self._some(count))
    self._drop_if_empty()
    return data

  def close(self) -> None:
    """As that of a file."""
    self._give_back()
    _under_way.start_waiting()

  def __del__(self):
    # Others are not started here: this may run in the middle of anything.
    self._give_back()

  def _give_back(self) -> None:
    with self._lock:
      self._todo.clear()
      started = [count for count, _ in self._started]
      self._started.clear()
    _under_way.give_back(sum(started) + self._held)
    self._rest, self._held = memoryview(b''), 0

  def _some(self, count: int) -> memoryview:
    """Returns some of the next bytes; none at the end."""
    while not self._rest and (self._started or self._todo):
      self._drop()
      self._start_more(is_needed=True)
      with self._lock:
        self._held, piece = self._started.popleft()
      try:
        self._rest = memoryview(piece.result())
      except BaseException:
        self.close()  # Its traceback may keep it for long.
        raise
      self._start_more()
    data, self._rest = self._rest[:count], self._rest[count:]
    return data

  def _drop_if_empty(self) -> None:
    """Lets go of a piece as soon as it is read: a reader may live much longer."""
    if not self._rest:
      self._drop()

  def _drop(self) -> None:
    """Releases the piece that was read last."""
    self._rest = memoryview(b'')
    if self._held:
      _under_way.give_back(self._held)
      self._held = 0
      _under_way.start_waiting()

  def resume(self) -> bool:
    """Starts what had no room; returns whether all of it has."""
    with self._lock:
      self._is_waiting = False
    self._start_more()
    return not self._is_waiting

  def _start_more(self, *, is_needed: bool = False) -> None:
    with self._lock:
      while self._todo and len(self._started) < _NUM_PIECES:
        start, stop = self._todo[0]
        is_next = is_needed and not self._started
        limit = None if is_next else self._ahead()
        if not _under_way.take(stop - start, limit):
          if not self._is_waiting:
            self._is_waiting = True
            _under_way.wait(self._number, self)
          return
        try:
          piece = self._begin(start, stop)
        except BaseException:
          _under_way.give_back(stop - start)
          raise
        del self._todo[0]
        self._started.append((stop - start, piece))


_numbers = itertools.count()


class _UnderWay:
  """How many bytes all readers of this process have, and who waits for room.

  Small arrays are opened together, and have no room while a large one is read. The
  one that was opened first starts first: it is read first.
  """

  def __init__(self):
    # A reader may go in the middle of what is done here.
    self._lock, self._bytes = threading.RLock(), 0
    self._waiting: list[tuple[int, weakref.ref[Reader]]] = []

  def take(self, count: int, limit: int | None) -> bool:
    with self._lock:
      if limit is not None and self._bytes + count > limit:
        return False
      self._bytes += count
      return True

  def give_back(self, count: int) -> None:
    with self._lock:
      self._bytes -= count

  def wait(self, number: int, reader: Reader) -> None:
    with self._lock:
      heapq.heappush(self._waiting, (number, weakref.ref(reader)))

  def start_waiting(self) -> None:
    while True:
      with self._lock:
        if not self._waiting:
          return
        reader = heapq.heappop(self._waiting)[1]()
      try:
        if reader is not None and not reader.resume():
          return
      except Exception:
        pass  # It is an error of that reader, once it needs the piece.


_under_way = _UnderWay()
