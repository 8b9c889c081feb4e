"""Where a dataset row came from: its index, file and line, for errors.

A row is a plain dict for transforms and grain's workers, without a field for
its origin. So each thread remembers the row that it read last; its transforms
get that row next.
"""

from collections.abc import Callable
import threading
from typing import Any

_LAST = threading.local()


def note(row: Any, *, index: int, place: Callable[[], str]) -> None:
  """Remembers the origin of a row.

  Args:
    row: The row, as the source returns it.
    index: Its index in the source.
    place: Says its file and line, as `'line 3 of rows.jsonl'`.
  """
  _LAST.read = (row, index, place)


def moved[T](row: Any, new: T) -> T:
  """Gives a transformed row the origin of its input, and returns it."""
  read, index, place = getattr(_LAST, 'read', (None, 0, str))
  if row is read and row is not None:
    note(new, index=index, place=place)
  return new


def of(row: Any) -> str | None:
  """Returns `'row 2, line 3 of rows.jsonl'`; None if that is not known.

  It is known for the object that this thread read last, and for results of
  transforms before a task, but not for a copy.
  """
  read, index, place = getattr(_LAST, 'read', (None, 0, str))
  if row is None or row is not read:
    return None
  return f'row {index}, {place()}'
