"""Small spans beside each other, which are read as one."""

from collections.abc import Iterable
from collections.abc import Sequence
import threading

from gemma4_lora.host.ranges import _bucket_reads

# A tensor that takes no longer than an answer is read with its neighbours.
_SMALL_BYTES = 2**18
_MOST_BYTES = 2**22


class Neighbours:
  """Small spans beside each other, which are read as one: each byte once."""

  def __init__(self, spans: Iterable[_bucket_reads.Span]):
    """Creates it.

    Args:
      spans: All that will be read of a file, each once.
    """
    self._ranges = {
        span: group
        for spans in _groups(spans)
        for group in [_Range(spans)]
        for span in spans
    }

  def take(
      self, span: _bucket_reads.Span, begin: _bucket_reads.Begin
  ) -> _bucket_reads.Piece | None:
    """Returns the read that has a span's bytes, None if it is read alone.

    Args:
      span: One of the spans, or any other.
      begin: Starts to read.
    """
    found = self._ranges.get(span)
    return None if found is None else found.take(span, begin)


class _Range:
  """Neighbours, which come with the first of them."""

  def __init__(self, spans: Sequence[_bucket_reads.Span]):
    self._start, self._stop = spans[0][0], spans[-1][1]
    self._todo = set(spans)
    self._piece: _Shared | None = None
    self._lock = threading.Lock()

  def take(
      self, span: _bucket_reads.Span, begin: _bucket_reads.Begin
  ) -> '_Part | None':
    with self._lock:
      if span not in self._todo:
        return None  # A second read: the neighbours are not kept for it.
      self._todo.remove(span)
      if self._piece is None:
        self._piece = _Shared(begin(self._start, self._stop))
      piece = self._piece
      if not self._todo:
        self._piece = None
    return _Part(piece, slice(span[0] - self._start, span[1] - self._start))


class _Shared:
  """A piece that several wait for."""

  def __init__(self, piece: _bucket_reads.Piece):
    self._piece: _bucket_reads.Piece | None = piece
    self._data = memoryview(b'')
    self._lock = threading.Lock()

  def result(self) -> memoryview:
    with self._lock:
      if self._piece is not None:
        self._data = memoryview(self._piece.result())
        self._piece = None
      return self._data


class _Part:
  """A part of a piece."""

  def __init__(self, piece: _Shared, where: slice):
    self._piece, self._where = piece, where

  def result(self) -> memoryview:
    return self._piece.result()[self._where]


def _groups(
    spans: Iterable[_bucket_reads.Span],
) -> list[list[_bucket_reads.Span]]:
  """Returns neighbours that are small, a piece's bytes at most, by order."""
  groups: list[list[_bucket_reads.Span]] = []
  for span in sorted(set(spans)):
    start, stop = span
    if not 0 < stop - start <= _SMALL_BYTES:
      continue
    last = groups[-1] if groups else [(0, -1)]
    if start == last[-1][1] and stop - last[0][0] <= _MOST_BYTES:
      last.append(span)
    else:
      groups.append([span])
  return [x for x in groups if len(x) > 1]
