"""Rows by way of worker processes, which have copies of tasks and sources."""

import dataclasses
import json

from absl import flags
from kauldron import kd
import numpy as np
import pytest

from gemma4_lora import g4

_TASK = g4.data.ChatTask(
    in_prompt='en',
    in_response='fr',
    tokenizer=g4.testing.Gemma4Tokenizer(),
    max_length=96,
    max_malformed=0.5,
)


@pytest.fixture
def _parsed_flags():
  """As `kauldron.main` parses them; those of grain's workers are read."""
  was_parsed = flags.FLAGS.is_parsed()
  flags.FLAGS.mark_as_parsed()
  yield
  if not was_parsed:
    flags.FLAGS.unparse_flags()


@pytest.mark.usefixtures('_parsed_flags')
def test_rows_of_a_worker_are_those_of_the_process_itself(tmp_path):
  """Packed and shuffled; with a row that is malformed.

  That they are resumed: `packed_source_test.py`. Each worker imports for 12 s.
  """
  path = tmp_path / 'rows.jsonl'
  rows = [*g4.testing.EnFrPairs(split='test'), {'en': 'Yes.', 'fr': ''}]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  source = g4.data.PackedSource(
      data_source=g4.data.Jsonl(path=path, shuffle=False), transforms=[_TASK]
  )
  dataset = kd.data.py.DataSource(
      data_source=source, shuffle=True, num_epochs=2, batch_size=2, seed=0
  )
  here = list(dataclasses.replace(dataset, num_workers=0))
  assert len(here) > 4
  there = list(dataclasses.replace(dataset, num_workers=1))
  assert len(there) == len(here)
  for a, b in zip(here, there, strict=True):
    assert a.keys() == b.keys()
    for key in a:
      np.testing.assert_array_equal(a[key], b[key])
