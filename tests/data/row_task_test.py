"""Tests of `RowTask`, by a task that doubles a number."""

import dataclasses
import os
from typing import Any

import pytest

from gemma4_lora.data import _row_task


@dataclasses.dataclass(kw_only=True, frozen=True)
class _Double(_row_task.RowTask):
  """Doubles the number at `x`, which must not be negative."""

  is_broken: bool = False
  error: Any = None

  def fields(self, element):
    if self.error is not None:
      raise self.error
    if element['x'] < 0:
      raise ValueError('a negative number')
    return {'y': 2 * element['x']}

  @property
  def _in_keys(self):
    return ['x']

  def _check(self):
    if self.is_broken:
      raise ValueError('a broken task')


def test_outputs_are_added_and_inputs_dropped_in_a_copy():
  row = {'x': 2, 'id': 7}
  assert _Double().map(row) == {'y': 4, 'id': 7}
  assert _Double(drop_inputs=False).map(row) == {'x': 2, 'y': 4, 'id': 7}
  assert row == {'x': 2, 'id': 7}


def test_what_stays_in_an_example_may_be_changed():
  row = {'x': 2, 'other': {'a': [{'b': 1}]}}
  _Double().map(row)['other']['a'][0]['b'] = 2
  assert row == {'x': 2, 'other': {'a': [{'b': 1}]}}


def test_rows_are_counted_and_malformed_ones_left_out_within_the_limit():
  task = _Double(max_malformed=1)
  assert [task.map({'x': x}) for x in (1, -1)] == [{'y': 2}, None]
  assert (task.malformed.num_rows, task.malformed.num_malformed) == (2, 1)
  with pytest.raises(ValueError, match='_Double: 2 of 3 rows are malformed'):
    task.map({'x': -2})


def test_an_error_of_the_task_is_no_malformed_row():
  task = _Double(is_broken=True, max_malformed=5)
  with pytest.raises(ValueError, match='a broken task'):
    task.map({'x': -1})
  assert task.malformed.num_rows == 0


def _unicode_error():
  try:
    '\ud800'.encode()
  except UnicodeError as e:
    return e


@pytest.mark.parametrize(
    'error, text',
    [
        (TypeError('no len()'), r'TypeError: no len\(\)'),
        (OSError('truncated'), 'OSError: truncated'),
        (AttributeError('a'), 'AttributeError: a'),
        (RecursionError('a'), 'nested too deep'),
        (_unicode_error(), r"not Unicode: 'utf-8' codec .* '\\ud800'"),
        (UserWarning(), 'UserWarning: '),
        (KeyError(), 'KeyError: '),
    ],
)
def test_a_row_is_malformed_whatever_it_raises(error, text):
  task = _Double(max_malformed=1, error=error)
  assert task.map({'x': 1}) is None
  assert task.malformed.num_malformed == 1
  match = rf"{text}(.|\n)*In the row: \{{'x': 1"
  with pytest.raises((ValueError, KeyError), match=match):
    dataclasses.replace(task, max_malformed=0).map({'x': 1})


def test_too_little_memory_is_no_malformed_row():
  task = _Double(max_malformed=1, error=MemoryError(os.strerror(12)))
  with pytest.raises(MemoryError):
    task.map({'x': 1})
  assert task.malformed.num_malformed == 0
