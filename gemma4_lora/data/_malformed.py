"""Counts the rows that cannot be trained on, and stops where there are many."""

import collections
from typing import Any

from absl import logging

from gemma4_lora.data.layouts import _fields
from gemma4_lora.data.sources import _origins

# A share of fewer rows than this says nothing.
_FEWEST = 100
# Rows that are shown in full before only round numbers are.
_SHOWN = 5


def check_limit(limit: float, *, name: str) -> None:
  """Raises a ValueError for a limit that is neither a number nor a share."""
  is_count = isinstance(limit, int) and not isinstance(limit, bool)
  if not is_count and not (isinstance(limit, float) and limit < 1) or limit < 0:
    raise ValueError(
        f'{name}(max_malformed={limit!r}) should be a number of rows (int), or a'
        ' share of those that were read (float, below 1).'
    )


def with_row(error: Exception, row: Any) -> Exception:
  """Returns the error, saying in which row it is."""
  return type(error)(f'{error.args[0]}\nIn {_shown(row, 300)}')


class Counter:
  """Counts dataset rows of one task, in one process.

  Attributes:
    num_rows: Rows read so far; a row counts in each epoch.
    num_malformed: How many of them were malformed.
    reasons: How many rows have each reason.
  """

  def __init__(self, *, name: str, limit: float):
    self._name = name
    self._limit = limit
    self.num_rows = 0
    self.num_malformed = 0
    self.reasons: collections.Counter[str] = collections.Counter()
    self._examples: list[str] = []

  def add(self) -> None:
    """Counts a row that is as it should be."""
    self.num_rows += 1

  def add_malformed(self, row: Any, error: Exception) -> None:
    """Counts and shows a row that is not.

    Raises:
      ValueError: There are more than the limit.
      KeyError: The limit is 0 and the row lacks a field.
    """
    self.num_rows += 1
    self.num_malformed += 1
    if not self._limit:
      raise with_row(error, row) from None
    reason = str(error.args[0])
    self.reasons[reason.split(':')[0][:120]] += 1
    if len(self._examples) < _SHOWN:
      self._examples.append(f'{reason:.300}\n    In {_shown(row, 200)}')
    if self.num_malformed > self._allowed:
      raise ValueError(self._message())
    if self.num_malformed <= _SHOWN or not self.num_malformed % 1000:
      logging.warning(
          '%s: left out malformed row number %d of %d read: %s\nIn %s',
          self._name,
          self.num_malformed,
          self.num_rows,
          reason,
          _shown(row, 300),
      )

  @property
  def _allowed(self) -> float:
    if isinstance(self._limit, int):
      return self._limit
    return self._limit * max(self.num_rows, _FEWEST)

  def _message(self) -> str:
    reasons = '\n'.join(
        f'  {count} x {reason}' for reason, count in self.reasons.most_common(5)
    )
    examples = '\n'.join(f'  {example}' for example in self._examples)
    return (
        f'{self._name}: {self.num_malformed} of {self.num_rows} rows are'
        f' malformed, more than max_malformed={self._limit} lets pass.\n'
        f'{reasons}\nThe first of them:\n{examples}'
    )


def _shown(row: Any, length: int) -> str:
  """Returns a row for a message, with its index, file and line if known."""
  origin = _origins.of(row) or 'the row'
  if isinstance(row, _fields.Broken):
    return origin  # The reason has the rest.
  return f'{origin}: {repr(row):.{length}}'
