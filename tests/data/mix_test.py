"""Datasets mixed by weights: which rows, in which order, and after a resume.

Kauldron mixes; here it is shown to do so with our sources, tasks and packed rows.
"""

import itertools
import json

from kauldron import kd
import numpy as np

from gemma4_lora import g4

_LENGTH = 16
_FEW, _MANY = 8, 40


def _files(folder, name, number):
  """Rows that are one number each, with a malformed one among them."""
  rows = [{'text': f'{name} {i}', 'name': name, 'i': i} for i in range(number)]
  rows[2]['text'] = ''
  path = folder / f'{name}.jsonl'
  path.write_text('\n'.join(map(json.dumps, rows)))
  task = g4.data.TextTask(
      tokenizer=g4.testing.Gemma4Tokenizer(),
      max_length=_LENGTH,
      max_malformed=0.5,
  )
  return g4.data.Files(path=path, shuffle=True, transforms=[task])


def _mix(folder, **kwargs):
  return kd.data.py.Mix(
      datasets=[_files(folder, 'few', _FEW), _files(folder, 'many', _MANY)],
      weights=[1, 3],
      **dict(batch_size=None, num_workers=0, seed=0) | kwargs,
  )


def _taken(ds, number):
  return [(x['name'], x['i']) for x in itertools.islice(ds, number)]


def test_shares_are_the_weights_and_order_depends_on_the_seed(tmp_path):
  rows = _taken(_mix(tmp_path), 120)
  share = sum(name == 'few' for name, _ in rows) / len(rows)
  assert abs(share - 0.25) < 0.03
  assert _taken(_mix(tmp_path), 120) == rows
  assert _taken(_mix(tmp_path, seed=1), 120) != rows
  assert rows[:24] != rows[24:48]


def test_epochs_go_on_with_the_rows_of_the_larger_dataset(tmp_path):
  one = list(_mix(tmp_path, num_epochs=1))
  # Eight of the first and 24 of the second, less the malformed.
  assert 30 <= len(one) <= 32
  rows = _taken(_mix(tmp_path), 70)
  seen = {i for name, i in rows if name == 'many'}
  assert seen == set(range(_MANY)) - {2}


def test_a_mix_resumes_with_the_next_batch(tmp_path):
  keep = kd.data.py.Elements(keep=['input', 'loss_mask'])

  def make():
    return iter(_mix(tmp_path, batch_size=4, transforms=[keep]))

  batches = [x['input'] for x in itertools.islice(make(), 12)]
  iterator = make()
  for _ in range(5):
    next(iterator)
  resumed = make()
  resumed.iter.set_state(iterator.iter.get_state())
  rest = [x['input'] for x in itertools.islice(resumed, 7)]
  np.testing.assert_array_equal(np.stack(batches[5:]), np.stack(rest))


def test_packed_datasets_are_mixed(tmp_path):
  def packed(name, number):
    files = _files(tmp_path, name, number)
    source = g4.data.PackedSource(
        data_source=g4.data.Files(path=files.path, shuffle=False),
        transforms=files.transforms,
    )
    return kd.data.py.DataSource(data_source=source, shuffle=True)

  mix = kd.data.py.Mix(
      datasets=[packed('few', _FEW), packed('many', _MANY)],
      batch_size=2,
      num_workers=0,
      seed=0,
  )
  batch = next(iter(mix))
  assert batch['positions'].shape == (2, _LENGTH)
