"""Tests of packing: which conversations share a row, and what a row is."""

import dataclasses
import pickle
import random

from grain import python as grain
import jax
import jax.numpy as jnp
from kauldron import kd
from kauldron import kontext
import numpy as np
import pytest

from gemma4_lora import g4
from gemma4_lora.data import _first_fit
from tests.lib import models
from tests.lib import random_params

_PAIRS = g4.testing.EnFrPairs(split='test')
_TASK = g4.data.ChatTask(
    in_prompt='en',
    in_response='fr',
    tokenizer=g4.testing.Gemma4Tokenizer(),
    max_length=96,
)
_SOURCE = g4.data.PackedSource(data_source=_PAIRS, transforms=[_TASK])


def _naive(sizes, capacity):
  """First-fit decreasing, by trying each bin in turn."""
  bins, rooms = [], []
  for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
    for b, room in enumerate(rooms):
      if room >= sizes[i]:
        bins[b].append(i)
        rooms[b] -= sizes[i]
        break
    else:
      bins.append([i])
      rooms.append(capacity - sizes[i])
  return sorted(sorted(b) for b in bins)


@pytest.mark.parametrize('number', [0, 1, 2, 3, 8, 57, 400])
def test_bins_are_those_of_first_fit_decreasing(number):
  rng = random.Random(number)
  sizes = [rng.randint(1, 40) for _ in range(number)]
  bins = _first_fit.first_fit_decreasing(sizes, capacity=40)
  assert bins == _naive(sizes, 40)


def test_an_item_larger_than_a_bin_is_an_error():
  with pytest.raises(ValueError, match='Item 1 has size 9, .*capacity=8'):
    _first_fit.first_fit_decreasing([3, 9], capacity=8)


def test_each_conversation_is_in_one_row_with_its_tokens():
  seen = []
  for row, items in zip(_SOURCE, _SOURCE.bins, strict=True):
    starts = [*np.flatnonzero(row['positions'] == 0)[: len(items)], 96]
    for i, at in zip(items, starts, strict=False):
      alone = _TASK.map(_PAIRS[i])
      n = int(np.flatnonzero(alone['loss_mask'])[-1]) + 1
      assert row['positions'][at : at + n].tolist() == list(range(n))
      for key in ('input', 'target', 'loss_mask'):
        np.testing.assert_array_equal(row[key][at : at + n], alone[key][:n])
      seen.append(i)
    end = at + n
    assert not any(row[key][end:].any() for key in row)
  assert sorted(seen) == list(range(40))


def test_rows_have_the_shapes_of_chat_tasks_and_are_fuller():
  spec = {k: (v.shape, v.dtype) for k, v in _TASK.map(_PAIRS[0]).items()}
  packed = {k: (v.shape, v.dtype) for k, v in _SOURCE[0].items()}
  assert packed == spec | {'positions': ((96,), np.int32)}
  metric = g4.data.PaddingEfficiency(tokens='batch.input')
  tokens = jnp.asarray(np.stack([row['input'] for row in _SOURCE]))
  alone = np.stack([_TASK.map(pair)['input'] for pair in _PAIRS])
  assert metric.get_state(tokens=tokens).compute() > 0.8
  assert metric.get_state(tokens=jnp.asarray(alone)).compute() < 0.4
  np.testing.assert_allclose(
      metric.get_state(tokens=tokens).compute(), (tokens > 0).mean()
  )


def test_a_copy_in_a_worker_has_the_same_rows():
  copy = pickle.loads(pickle.dumps(dataclasses.replace(_SOURCE)))
  assert copy.bins == _SOURCE.bins


def test_rows_are_sharded_shuffled_and_resumed_by_kauldron():
  def dataset(**kwargs):
    return kd.data.py.DataSource(
        data_source=_SOURCE,
        batch_size=2,
        num_workers=0,
        seed=0,
        **{'shuffle': True, 'num_epochs': 2} | kwargs,
    )

  batches = [b['input'] for b in dataset()]
  iterator = iter(dataset())
  for _ in range(3):
    next(iterator)
  state = iterator.iter.get_state()
  resumed = iter(dataset())
  resumed.iter.set_state(state)
  rest = [b['input'] for b in resumed]
  np.testing.assert_array_equal(np.stack(batches[3:]), np.stack(rest))
  plain = np.concatenate(
      [b['input'] for b in dataset(shuffle=False, num_epochs=1)]
  )
  expected = [row['input'] for row in _SOURCE][: len(plain)]
  np.testing.assert_array_equal(plain, expected)


def test_kauldrons_datasets_are_sources():
  dataset = kd.data.py.DataSource(data_source=_PAIRS, shuffle=True)
  source = dataclasses.replace(_SOURCE, data_source=dataset)
  assert source.bins == _SOURCE.bins
  dataset = dataclasses.replace(dataset, transforms=[_TASK])
  with pytest.raises(ValueError, match='has transforms= of its own'):
    len(dataclasses.replace(_SOURCE, data_source=dataset))


class _Rename(grain.MapTransform):

  def map(self, row):
    return {'en': row['a'], 'fr': 'Oui.'} if row['a'] else {}


class _Keep(grain.FilterTransform):

  def filter(self, row):
    return row['a'] != 'no'


def test_transforms_run_and_malformed_rows_are_left_out():
  rows = [{'a': 'Yes.'}, {'a': 'no'}, {'a': ''}, {'a': 'Maybe.'}]
  task = dataclasses.replace(_TASK, max_malformed=1)
  source = dataclasses.replace(
      _SOURCE, data_source=rows, transforms=[_Keep(), _Rename(), task]
  )
  assert source.bins == [[0, 3]]
  assert task.malformed.num_malformed == 1
  source = dataclasses.replace(source, data_source=rows[1:2])
  with pytest.raises(ValueError, match='of 1 rows none is left'):
    len(source)
  strict = dataclasses.replace(
      source, data_source=rows, transforms=[_Keep(), _Rename(), _TASK]
  )
  with pytest.raises(KeyError, match="no field 'en'.*In the row"):
    len(strict)


@pytest.mark.parametrize(
    'transforms, match',
    [
        ([], r'should end with a g4.data.ChatTask or.* Got: \[\]'),
        ([_TASK, _Keep()], r"should end with a g4.data.ChatTask.*'_Keep'"),
        (
            [kd.data.py.SliceDataset(2), _TASK],
            'takes grain.MapTransform and .*Got: SliceDataset',
        ),
        ([dataclasses.replace(_TASK, sampling=True)], 'gives text, which is'),
    ],
)
def test_other_transforms_are_an_error(transforms, match):
  with pytest.raises(ValueError, match=match):
    g4.data.PackedSource(data_source=_PAIRS, transforms=transforms)


def test_the_loss_of_packed_rows_is_that_of_the_conversations():
  """Through the keys by which Kauldron calls the model."""
  base = g4.testing.Gemma4_31B(tokens='batch.input', dtype=jnp.float32)
  model = g4.nn.LoRA(
      rank=2, model=models.shallow(base), positions='batch.positions'
  )
  params = random_params.make(model)
  loss = kd.losses.SoftmaxCrossEntropyWithIntLabels(
      logits='preds.logits', labels='batch.target', mask='batch.loss_mask'
  )

  def mean_loss(rows):
    batch = jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *rows)
    # Ordinary rows have no positions of their own.
    batch.setdefault(
        'positions', jnp.broadcast_to(jnp.arange(96), batch['input'].shape)
    )
    kwargs = kontext.resolve_from_keyed_obj({'batch': batch}, model)
    preds = jax.jit(model.apply)({'params': params}, **kwargs)
    return loss(
        logits=preds.logits, labels=batch['target'], mask=batch['loss_mask']
    )

  packed = mean_loss(list(_SOURCE))
  alone = mean_loss([_TASK.map(pair) for pair in _PAIRS])
  np.testing.assert_allclose(packed, alone, rtol=1e-5)
