"""Counts the rows that cannot be trained on, and stops if there are many."""

import collections
import math
import re
import threading
from typing import Any

from absl import logging

from gemma4_lora.data.layouts import _fields
from gemma4_lora.data.rows import _short
from gemma4_lora.data.sources import _origins

# A share of fewer rows than this is not meaningful.
_FEWEST = 100
# Nor do so few malformed rows.
_ALWAYS = 2
# How many rows of each reason are shown in full.
_SHOWN = 3
# Reasons that are counted one by one; later ones count as `_OTHER`.
_MOST_REASONS = 200
_OTHER = 'other reasons'
# How many rows keep their places.
_MOST_PLACES = 100_000


def check_limit(limit: float, *, name: str) -> None:
  """Raises a ValueError for a limit that is neither a number nor a share."""
  is_count = isinstance(limit, int) and not isinstance(limit, bool)
  if not is_count and not (isinstance(limit, float) and limit < 1) or limit < 0:
    raise ValueError(
        f'{name}(max_malformed={limit!r}) should be a number of rows (int), or a'
        ' share of those that were read (float, below 1).'
    )


def allowed(limit: float, num_rows: int) -> float:
  """Returns how many of the rows may be malformed.

  Args:
    limit: A number, or a share. Of a share, three standard errors more are
      allowed: where malformed rows are just below it, the first hundreds may
      have more by chance, and a run would end there.
    num_rows: How many rows were read.
  """
  if isinstance(limit, int):
    return limit
  expected = limit * num_rows
  by_chance = 3 * math.sqrt(expected * (1 - limit))
  return max(expected + by_chance, limit * _FEWEST, _ALWAYS)


def with_row(error: Exception, row: Any) -> Exception:
  """Returns the error with its row.

  Returns:
    A KeyError for a field that is missing; a ValueError for all else.
  """
  cls = KeyError if type(error) is KeyError else ValueError
  return cls(f'{explained(error)}\nIn {_shown(row, 300)}')


def explained(error: Exception) -> str:
  """Returns the message of an error, for a person who reads about one row."""
  if isinstance(error, RecursionError):
    return 'The row is nested too deep to be read.'
  text = str(error.args[0]) if error.args else ''
  if isinstance(error, UnicodeError):  # Its first argument is a codec.
    return f'A text is not Unicode: {error}'
  if isinstance(error, ValueError | KeyError) and text:
    return text
  return f'{type(error).__name__}: {error}'


class Counter:
  """Counts dataset rows of one task, in one process.

  Attributes:
    num_rows: Rows read so far; a row counts in each epoch.
    num_malformed: How many of them were malformed.
    reasons: How many rows have each reason. Indices and other numbers in it are
      written as `#`, so that rows that differ in these alone count as one.
    examples: The first rows of each reason: what is wrong, and the row with its
      index, file and line, if they are known.
    places: Index, file and line of the rows of each reason, where they are known;
      of the first 100,000 malformed rows.
  """

  def __init__(self, *, name: str, limit: float, num_examples: int = _SHOWN):
    self._name = name
    self._num_examples = num_examples
    self._limit = limit
    self._lock = threading.Lock()  # Grain reads in threads.
    self.num_rows = 0
    self.num_malformed = 0
    self.reasons: collections.Counter[str] = collections.Counter()
    self.examples: dict[str, list[str]] = {}
    self.places: dict[str, list[str]] = {}

  def add(self) -> None:
    """Counts a good row."""
    with self._lock:
      self.num_rows += 1

  def add_malformed(self, row: Any, error: Exception) -> None:
    """Counts a malformed row, and shows the first of each reason.

    Raises:
      ValueError: There are more than the limit.
      KeyError: The limit is 0 and the row lacks a field.
    """
    text = explained(error)
    with self._lock:
      self.num_rows += 1
      self.num_malformed += 1
      reason = self._count(text)
      places = self.places.setdefault(reason, [])
      place = _origins.of(row)
      if place is not None and self.num_malformed <= _MOST_PLACES:
        places.append(place)
      examples = self.examples.setdefault(reason, [])
      is_shown = len(examples) < self._num_examples and reason != _OTHER
      if is_shown:
        examples.append(f'{text:.300}\n    In {_shown(row, 200)}')
    if not self._limit:
      # Errors of libraries are shown in full; our messages are complete.
      cause = None if type(error) in (ValueError, KeyError) else error
      raise with_row(error, row) from cause
    if self.num_malformed > self._allowed:
      raise ValueError(self.summary())
    if is_shown:
      logging.warning(
          '%s: left out malformed row number %d of %d read: %s\nIn %s',
          self._name,
          self.num_malformed,
          self.num_rows,
          text,
          _shown(row, 300),
      )
    if _is_round(self.num_malformed):
      logging.warning('%s', self.summary())

  def summary(self) -> str:
    """Returns how many rows are malformed, by reason, with examples."""
    lines = []
    for reason, count in self.reasons.most_common(20):
      lines.append(f'  {count} x {reason}')
      lines += [f'    {example}' for example in self.examples[reason][:1]]
    limit = ''
    if self.num_malformed > self._allowed:
      limit = f', more than max_malformed={self._limit} lets pass'
    return (
        f'{self._name}: {self.num_malformed} of {self.num_rows} rows are'
        f' malformed{limit}. By reason, with the first of each:\n'
        + '\n'.join(lines)
    )

  def _count(self, text: str) -> str:
    """Counts a reason, and returns its name."""
    reason = _reason(text)
    if reason not in self.reasons and len(self.reasons) >= _MOST_REASONS:
      reason = _OTHER
    self.reasons[reason] += 1
    return reason

  @property
  def _allowed(self) -> float:
    return allowed(self._limit, self.num_rows)


def _reason(text: str) -> str:
  """Returns an error's text without the parts that differ from row to row."""
  # The task's name comes before the reason.
  text = re.sub(r'^\w+Task: ', '', text)
  text = re.split(r':|\. |\n| \(', text, maxsplit=1)[0]
  text = re.sub(r" is '[^']*'", " is '...'", text)
  return re.sub(r'(?<![\w-])\d+', '#', text)[:120]


def _is_round(number: int) -> bool:
  """Whether a number is 10, 100, 1000, 2000, 3000, ..."""
  return number in (10, 100) or not number % 1000


def _shown(row: Any, length: int) -> str:
  """Returns a row for a message, with its index, file and line if known."""
  origin = _origins.of(row) or 'the row'
  if isinstance(row, _fields.Broken):
    return origin  # The reason has the rest.
  return f'{origin}: {_short.short(row, length)}'
