"""Tests of malformed rows: counted, shown, and an error above a limit."""

import dataclasses
import json
import pickle

from absl import logging
from grain import python as grain
from kauldron import kd
import numpy as np
import pytest

from gemma4_lora import g4
from gemma4_lora.data import _malformed

_TASK = g4.data.ChatTask(
    in_prompt='en',
    in_response='fr',
    tokenizer=g4.testing.Gemma4Tokenizer(),
    max_length=16,
)
_GOOD = {'en': 'Yes.', 'fr': 'Oui.'}


@dataclasses.dataclass(frozen=True)
class _Rows(grain.RandomAccessDataSource):
  """Rows of which each tenth is malformed, in one of two ways."""

  number: int
  every: int = 10

  def __len__(self):
    return self.number

  def __getitem__(self, index):
    if index % self.every:
      return dict(_GOOD)
    return {'en': 'Yes.'} if index % (2 * self.every) else {'en': 1, 'fr': 'a'}


def _dataset(rows, **kwargs):
  return kd.data.py.DataSource(
      data_source=rows,
      shuffle=False,
      num_epochs=1,
      batch_size=None,
      num_workers=0,
      transforms=[dataclasses.replace(_TASK, **kwargs)],
  )


def test_a_malformed_row_is_an_error_by_default():
  with pytest.raises(ValueError, match="'en' should be text") as e:
    list(_dataset(_Rows(30)))
  assert "In the row: {'en': 1, 'fr': 'a'}" in str(e.value)


def test_rows_within_the_limit_are_left_out_and_shown(caplog):
  with caplog.at_level(logging.WARNING):
    examples = list(_dataset(_Rows(30), max_malformed=3))
  assert len(examples) == 27
  shown = [r.getMessage() for r in caplog.records if 'malformed' in r.msg]
  assert len(shown) == 3
  assert 'left out malformed row number 2 of 11 read: The example has no field' in shown[1]  # pylint: disable=line-too-long
  assert "In the row: {'en': 'Yes.'}" in shown[1]


@pytest.mark.parametrize(
    'limit, error', [(3, None), (2, '3 of 21'), (0.1, None), (0.02, '3 of 21')]
)
def test_more_than_the_limit_are_an_error(limit, error):
  dataset = _dataset(_Rows(30), max_malformed=limit)
  if error is None:
    assert len(list(dataset)) == 27
    return
  match = rf'(?s){error} rows are malformed, .*max_malformed={limit}'
  with pytest.raises(ValueError, match=match) as e:
    list(dataset)
  message = str(e.value)
  assert "2 x Field 'en' should be text" in message
  assert "1 x The example has no field 'fr'" in message
  assert "In the row: {'en': 1, 'fr': 'a'}" in message
  assert "In the row: {'en': 'Yes.'}" in message


def test_a_share_is_of_the_rows_read():
  assert len(list(_dataset(_Rows(400, every=50), max_malformed=0.02))) == 392
  with pytest.raises(ValueError, match='3 of 101 rows are malformed'):
    list(_dataset(_Rows(400, every=50), max_malformed=0.005))


@pytest.mark.parametrize('share', [0.002, 0.01, 0.3])
def test_a_run_near_its_share_does_not_end_by_chance(share):
  """As a plain share would: most of these runs end at the first hundreds."""
  rng = np.random.default_rng(0)
  limits = np.array([_malformed.allowed(share, n) for n in range(1, 2001)])
  ended = 0
  for _ in range(300):
    malformed = np.cumsum(rng.random(2000) < 0.9 * share)
    ended += bool((malformed > limits).any())
  assert ended <= 15
  # And one with clearly more ends soon.
  malformed = np.cumsum(rng.random(50_000) < 2 * share)
  first = next(
      n
      for n in range(1, 50_000)
      if malformed[n - 1] > _malformed.allowed(share, n)
  )
  assert first < 30 / share


def test_no_mask_is_ever_empty():
  """Rows that `truncate=True` leaves nothing to train on are malformed."""
  task = dataclasses.replace(_TASK, truncate=True, max_malformed=1)
  long = {'en': 'Yes. ' * 20, 'fr': 'Oui.'}
  assert task.map(long) is None
  with pytest.raises(ValueError, match='2 of 2 rows.*'):
    task.map(long)
  assert task.malformed.num_malformed == 2


def test_each_worker_counts_its_own():
  task = dataclasses.replace(_TASK, max_malformed=1)
  assert task.map({'en': 'Yes.'}) is None
  copy = pickle.loads(pickle.dumps(task))
  assert (task.malformed.num_rows, copy.malformed.num_rows) == (1, 0)


@pytest.mark.parametrize('limit', [-1, 1.0, 1.5, -0.1, True, 'a'])
def test_a_limit_that_is_none_is_an_error(limit):
  with pytest.raises(ValueError, match=r'max_malformed=.*number of rows \(int'):
    dataclasses.replace(_TASK, max_malformed=limit)


def test_rows_that_differ_in_numbers_alone_have_one_reason(caplog):
  task = dataclasses.replace(_TASK, layout='messages', max_malformed=20)
  user = {'role': 'user', 'content': 'a'}
  with caplog.at_level(logging.WARNING):
    for i in range(10):
      task.map({'messages': [user] * i + [{'role': f'r{i}'}]})
    task.map({'messages': 3})
  first, second = task.malformed.reasons.most_common()
  assert first[0].startswith("Field 'messages[#].role' is '...'")
  assert second[0].startswith("Field 'messages' should be a list of dicts")
  assert (first[1], second[1]) == (10, 1)
  # Three of the ten in full, and all of them in one table.
  logged = [r.getMessage() for r in caplog.records]
  assert sum('left out malformed row' in text for text in logged) == 4
  (table,) = [text for text in logged if 'By reason' in text]
  assert 'ChatTask: 10 of 10 rows are malformed. By' in table
  assert "  10 x Field 'messages[#].role'" in table


def test_reasons_of_any_number_take_bounded_memory():
  counter = _malformed.Counter(name='T', limit=10_000)
  for i in range(3_000):
    counter.add_malformed({}, ValueError('x' * (i % 500)))
  assert len(counter.reasons) < 210
  assert sum(counter.reasons.values()) == 3_000
  assert sum(map(len, counter.examples.values())) < 700


def test_all_rows_of_a_reason_are_named_by_index_file_and_line(tmp_path):
  path = tmp_path / 'rows.jsonl'
  lines = [json.dumps(_GOOD if i % 3 else {'en': i}) for i in range(30)]
  path.write_text('\n'.join(['', *lines[:9], '[' * 10_000, *lines[9:]]))
  task = dataclasses.replace(_TASK, max_malformed=20)
  dataset = g4.data.Files(
      path=path,
      shuffle=True,
      seed=0,
      num_epochs=1,
      batch_size=None,
      num_workers=0,
      transforms=[task],
  )
  assert len(list(dataset)) == 20
  places = task.malformed.places
  missing, deep = sorted(places, key=lambda x: -len(places[x]))
  assert missing == "Field 'en' should be text"
  assert deep == 'The line is nested too deep'
  assert places[deep] == [f'row 9, line 11 of {path}']
  wanted = [i + (i >= 9) for i in range(0, 30, 3)]
  assert sorted(places[missing]) == sorted(
      f'row {i}, line {i + 2} of {path}' for i in wanted
  )
