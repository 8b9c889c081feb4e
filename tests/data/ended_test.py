"""Data that end before their run say so, and are saved as they were."""

from grain import python as grain
from kauldron import kd
from kauldron.train import checkpoint_state
from kauldron.utils import chrono_utils
import numpy as np
import pytest

from gemma4_lora.data import _ended
from tests.lib import models
from tests.lib import training


class _Some(grain.FilterTransform):
  """What nobody can count ahead."""

  def filter(self, element):
    return element['input'][0] % 2 == 0


class _None(grain.FilterTransform):

  def filter(self, element):
    return False


def _dataset(**kwargs):
  kwargs = dict(num_epochs=1, batch_size=2, transforms=[_Some()]) | kwargs
  return kd.data.py.DataSource(
      data_source=training.RandomTokens(num_examples=16),
      shuffle=False,
      seed=0,
      num_workers=0,
      **kwargs,
  )


def _item():
  ds = _dataset()
  return checkpoint_state.CheckpointState(
      kd.train.TrainState(step=0, params={}, opt_state={}, collections={}),
      chrono_utils.Chrono(name='train'),
      iter(ds),
  )


def test_the_end_is_a_line():
  want = [x['input'] for x in _item().ds_iter]
  item = _ended.explained(_item(), then=' Go on.')
  np.testing.assert_array_equal(
      [next(item.ds_iter)['input'] for _ in want], want
  )
  with pytest.raises(
      _ended.EndedError,
      match='ended before num_train_steps: .*_epochs=.* Go on',
  ):
    next(item.ds_iter)
  assert _ended.explained(item, then='') is item
  assert _ended.explained(item.train_state, then='') is item.train_state


def test_it_is_saved_and_restored_as_it_was(tmp_path):
  item = _ended.explained(_item(), then='')
  next(item.ds_iter)
  with kd.ckpts.Checkpointer(workdir=tmp_path, save_interval_steps=1) as ckpt:
    ckpt.save(item, step=0)
    want = next(item.ds_iter)
    kauldrons = ckpt.restore(_item()).ds_iter
    ours = ckpt.restore(_ended.explained(_item(), then='')).ds_iter
  assert isinstance(ours, _ended.Batches)
  assert ours.element_spec == kauldrons.element_spec
  for batches in (kauldrons, ours):
    np.testing.assert_array_equal(next(batches)['input'], want['input'])


def test_data_say_that_they_ended_and_end_loops():
  """As Kauldron's own loop asks for them, whatever saves the run."""
  plain = _dataset()
  ds = _ended.says_so(plain)
  assert _ended.says_so(ds) is ds and isinstance(ds, kd.data.py.DataSource)
  assert repr(ds) == repr(plain)
  batches = list(ds)
  assert len(batches) == len(list(plain)) > 1
  at_end = iter(ds)
  for _ in batches:
    next(at_end)
  with pytest.raises(StopIteration, match='ended before num_train_steps'):
    next(at_end)
  item = _item()._replace(ds_iter=at_end)
  with pytest.raises(_ended.EndedError, match='num_train_steps.* Go on'):
    next(_ended.explained(item, then=' Go on.').ds_iter)


@pytest.mark.parametrize(
    ('kwargs', 'match'),
    [
        ({'transforms': [_None()]}, 'fewer rows than batch_size=2, or none'),
        # For ever, as Grain looks for one.
        (
            {'transforms': [_None()], 'num_epochs': None},
            'train_ds has no batch: its filters and tasks drop all rows',
        ),
        ({'batch_size': 17}, 'fewer rows than batch_size=17, or none'),
    ],
)
def test_data_without_a_batch(kwargs, match):
  with pytest.raises(_ended.EndedError, match=match):
    assert _ended.says_so(_dataset(**kwargs)).element_spec


def test_few_rows_that_repeat_make_batches():
  ds = _ended.says_so(_dataset(batch_size=17, num_epochs=None))
  assert (
      ds.element_spec == _dataset(batch_size=17, num_epochs=None).element_spec
  )
  assert ds.element_spec['input'].shape[0] == 17


def test_our_step_lets_the_data_of_a_trainer_say_so(tmp_path):
  trainer = training.make_trainer(
      models.base(cut=models.one_layer), tmp_path, num_train_steps=1
  )
  again = trainer.replace(num_train_steps=2)
  assert isinstance(iter(again.train_ds), _ended.Batches)
