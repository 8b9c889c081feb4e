"""Tokens of the rows that were read last, up to a memory limit.

Packing reads each row twice: for its length, and for its tokens. The pieces of
a long text are in different rows, so a book would be tokenized once for each of
its pages.
"""

import threading
from typing import Any

import numpy as np

_Pieces = list[tuple[np.ndarray, np.ndarray]]

_MAX_TOKENS = 8_000_000  # 64 MB, with their weights.


class RecentTexts:
  """Keeps the pieces of rows, and drops the oldest above the limit."""

  def __init__(self, max_tokens: int = _MAX_TOKENS):
    self._max_tokens = max_tokens
    self._kept: dict[int, _Pieces] = {}
    self._num_tokens = 0
    self._lock = threading.Lock()  # Grain reads in threads.

  def get(self, row: int) -> _Pieces | None:
    """Returns the pieces of a row; None if they are not kept."""
    with self._lock:
      return self._kept.get(row)

  def keep(self, row: int, pieces: _Pieces) -> None:
    """Keeps the pieces of a row."""
    with self._lock:
      if row not in self._kept:
        self._kept[row] = pieces
        self._num_tokens += _size(pieces)
      while self._num_tokens > self._max_tokens:
        first = next(iter(self._kept))
        self._num_tokens -= _size(self._kept.pop(first))

  def __reduce__(self) -> Any:
    # Each worker process has its own.
    return RecentTexts, (self._max_tokens,)


def _size(pieces: _Pieces) -> int:
  return sum(len(ids) for ids, _ in pieces)
