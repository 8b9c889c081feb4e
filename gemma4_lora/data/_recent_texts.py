"""Tokens of the long texts that were read last, within a limit of memory.

Each piece of a long text is in another row. Without this, a book would be
tokenized once for each of its pages.
"""

from collections.abc import Callable
import threading
from typing import Any

import numpy as np

_Pieces = list[tuple[np.ndarray, np.ndarray]]

_MAX_TOKENS = 8_000_000  # 64 MB, with their weights.


class RecentTexts:
  """Keeps what was made last."""

  def __init__(self, max_tokens: int = _MAX_TOKENS):
    self._max_tokens = max_tokens
    self._kept: dict[int, _Pieces] = {}
    self._num_tokens = 0
    self._lock = threading.Lock()

  def get(self, key: int, make: Callable[[], _Pieces]) -> _Pieces:
    """Returns what `make` gives, now or when it was asked for the key before."""
    with self._lock:
      kept = self._kept.get(key)
    if kept is not None:
      return kept
    pieces = make()
    if len(pieces) > 1:
      with self._lock:
        self._keep(key, pieces)
    return pieces

  def _keep(self, key: int, pieces: _Pieces) -> None:
    if key not in self._kept:
      self._kept[key] = pieces
      self._num_tokens += _size(pieces)
    while self._num_tokens > self._max_tokens:
      first = next(iter(self._kept))
      self._num_tokens -= _size(self._kept.pop(first))

  def __reduce__(self) -> Any:
    # Worker processes keep their own.
    return RecentTexts, (self._max_tokens,)


def _size(pieces: _Pieces) -> int:
  return sum(len(ids) for ids, _ in pieces)
