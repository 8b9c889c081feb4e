"""Data that end before their run say so, and are saved as they were."""

from grain import python as grain
from kauldron import kd
from kauldron.train import checkpoint_state
from kauldron.utils import chrono_utils
import numpy as np
import pytest

from gemma4_lora.data import _ended
from tests.lib import training


class _Some(grain.FilterTransform):
  """What nobody can count ahead."""

  def filter(self, element):
    return element['input'][0] % 2 == 0


def _item():
  ds = kd.data.py.DataSource(
      data_source=training.RandomTokens(num_examples=16),
      shuffle=False,
      seed=0,
      num_epochs=1,
      batch_size=2,
      num_workers=0,
      transforms=[_Some()],
  )
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
