"""Tests of Parquet's types: what a row has, whatever its columns are."""

import datetime

import numpy as np
import pyarrow as pa
from pyarrow import parquet
import pytest

from gemma4_lora import g4

_MESSAGES = [
    {'role': 'user', 'content': 'Hi'},
    {'role': 'assistant', 'content': 'Hi!'},
]
_FIELDS = [('role', pa.string()), ('content', pa.large_string())]
_TASK = g4.data.ChatTask(
    layout='messages', tokenizer=g4.testing.Gemma4Tokenizer(), max_length=32
)


def _rows(path, columns, **kwargs):
  parquet.write_table(pa.table(columns), path, **kwargs)
  source = g4.data.Files(path=str(path), shuffle=False).data_source
  return [source[i] for i in range(len(source))]


def _dictionaries():
  """Returns messages whose roles are a dictionary's, inside of structs."""
  roles = pa.array(['user', 'assistant'] * 2).dictionary_encode()
  structs = pa.StructArray.from_arrays(
      [roles, pa.array(['Hi', 'Hi!'] * 2)], ['role', 'content']
  )
  return pa.ListArray.from_arrays(pa.array([0, 2, 4], pa.int32()), structs)


@pytest.mark.parametrize(
    'messages',
    [
        pa.array([_MESSAGES] * 2, pa.list_(pa.struct(_FIELDS))),
        pa.array([_MESSAGES] * 2, pa.large_list(pa.struct(_FIELDS))),
        pa.array([_MESSAGES] * 2, pa.list_(pa.struct(_FIELDS), 2)),
        pa.array(
            [[list(x.items()) for x in _MESSAGES]] * 2,
            pa.list_(pa.map_(pa.string(), pa.string())),
        ),
        _dictionaries(),
    ],
    ids=['list', 'large list', 'fixed-size list', 'maps', 'dictionaries'],
)
@pytest.mark.parametrize('row_group_size', [1, 2])
def test_messages_are_read_from_each_type(tmp_path, messages, row_group_size):
  rows = _rows(
      tmp_path / 'a.parquet',
      {'messages': messages},
      row_group_size=row_group_size,
  )
  assert rows == [{'messages': _MESSAGES}] * 2
  assert _TASK.render(rows[1]).trained == 'Hi!<turn|>'


def test_other_columns_end_no_run(tmp_path):
  columns = {
      'messages': pa.array([_MESSAGES], pa.list_(pa.struct(_FIELDS))),
      'far': pa.array([2**62], pa.timestamp('us', 'UTC')),
      'day': pa.array([datetime.date(2020, 1, 1)]),
      'none': pa.nulls(1),
      'map': pa.array(
          [[('a', [1, 2])]], pa.map_(pa.string(), pa.list_(pa.int8()))
      ),
      'kind': pa.array(['a']).dictionary_encode(),
      'half': pa.array(np.array([0.5], np.float16)),
      'bytes': pa.array([b'\xff'], pa.binary(1)),
  }
  (row,) = _rows(tmp_path / 'a.parquet', columns)
  assert row == {
      'messages': _MESSAGES,
      'far': 2**62,
      'day': datetime.date(2020, 1, 1),
      'none': None,
      'map': {'a': [1, 2]},
      'kind': 'a',
      'half': 0.5,
      'bytes': b'\xff',
  }
  assert _TASK.map(row)['far'] == 2**62
