"""Rows that could not be read pass by transforms, and are counted by the task."""

import dataclasses
import json

from grain import python as grain
from kauldron import kd
import pytest

from gemma4_lora import g4

_TASK = g4.data.TextTask(
    tokenizer=g4.testing.Gemma4Tokenizer(), max_length=16, max_malformed=9
)


class _Upper(grain.MapTransform):

  def map(self, element):
    return dict(element, text=element['text'].upper())


class _Short(grain.FilterTransform):

  def filter(self, element):
    return len(element['text']) < 9


class _Noise(grain.RandomMapTransform):

  def random_map(self, element, rng):
    return dict(element, text=element['text'] + 'ab'[rng.integers(2)])


@dataclasses.dataclass(frozen=True)
class _Kauldrons(kd.data.MapTransform):

  def map(self, element):
    return dict(element)


@pytest.fixture(name='path')
def _path(tmp_path):
  rows = [{'text': 'Oui.'}, {'text': 'Oui. ' * 9}, {'text': ''}]
  lines = [*map(json.dumps, rows), '{"text": ', 'null']
  path = tmp_path / 'rows.jsonl'
  path.write_text('\n'.join(lines))
  return path


@pytest.mark.parametrize(
    ('before', 'num_malformed'),
    [
        ([kd.data.Elements(keep=['text']), _Short()], 3),
        ([_Kauldrons(), _Short(), _Upper()], 3),
        ([_Short(), _Noise()], 2),  # The empty text is none any more.
    ],
)
def test_transforms_before_the_task(before, num_malformed, path):
  task = dataclasses.replace(_TASK)
  dataset = g4.data.Files(
      path=path,
      shuffle=False,
      num_epochs=1,
      batch_size=None,
      num_workers=0,
      seed=0,
      transforms=[*before, task, kd.data.Elements(keep=['input'])],
  )
  examples = list(dataset)
  assert len(examples) + num_malformed == 4
  assert task.malformed.num_malformed == num_malformed
  text = task.malformed.summary()
  assert 'The line is not JSON: line 4 of ' in text
  # A transform made another row of it, which has the origin of the first.
  assert ('row 2, line 3 of ' in text) == (num_malformed == 3)


def test_packed_rows(path):
  task = dataclasses.replace(_TASK)
  source = g4.data.PackedSource(
      data_source=g4.data.Files(path=path, shuffle=False),
      transforms=[_Short(), _Upper(), task],
  )
  assert len(source) == 1
  assert task.malformed.num_malformed == 3
  assert 'row 2, line 3 of ' in task.malformed.summary()


def test_without_a_task_nobody_would_count_them(path):
  dataset = g4.data.Files(
      path=path,
      shuffle=False,
      num_epochs=1,
      batch_size=None,
      num_workers=0,
      transforms=[_Upper()],
  )
  with pytest.raises(TypeError, match='Broken'):
    list(dataset)
