"""A batch of which nothing is trained is an error; nothing else is."""

import dataclasses

import jax
import jax.numpy as jnp
from kauldron import kd
import numpy as np
import pytest

from gemma4_lora import g4
from gemma4_lora.train import _empty_masks
from tests.lib import models
from tests.lib import training


@dataclasses.dataclass(frozen=True)
class _Masked(training.RandomTokens):
  """Masks of a task that is none of ours: all zero from some row on."""

  first_empty: int = 0

  def __getitem__(self, index):
    row = super().__getitem__(index)
    mask = np.full(row['target'].shape, index < self.first_empty)
    return row | {'loss_mask': mask}


def _trainer(tmp_path, first_empty, **kwargs):
  model = models.base(cut=models.one_layer)
  loss = g4.losses.SoftmaxCrossEntropyWithIntLabels(
      head='preds.head', labels='batch.target', mask='batch.loss_mask'
  )
  trainer = training.make_trainer(
      g4.nn.LoRA(rank=2, targets='q', model=model, logits_in_training=False),
      tmp_path,
      num_train_steps=3,
      data_source=_Masked(first_empty=first_empty),
      train_losses={'xent': loss},
      trainstep=g4.train.TrainStep(**kwargs),
      checkpointer=kd.ckpts.NoopCheckpointer(),
  )
  ds = dataclasses.replace(trainer.train_ds, shuffle=False)
  return dataclasses.replace(trainer, train_ds=ds)


def test_masks_of_a_foreign_task(tmp_path):
  """The second batch is empty: so says the step after the next."""
  trainer = _trainer(tmp_path, first_empty=8)
  with pytest.raises(
      ValueError, match=r'train_losses\.xent was zero .*allow_empty_masks=True'
  ):
    trainer.train()


def test_the_last_batch_of_a_run(tmp_path):
  """After it nothing begins that could look back; a second run counts anew."""
  trainer = _trainer(tmp_path, first_empty=24)
  for _ in range(2):
    with pytest.raises(ValueError, match='in step 3, the mask of train_losses'):
      trainer.train()


def test_may_be_allowed(tmp_path):
  state, _ = _trainer(tmp_path, first_empty=8, allow_empty_masks=True).train()
  assert int(state.step) == 4


def _states(**masks):
  state = kd.losses.Loss.State
  return {
      name: state.from_values(values=jnp.ones((2, 3, 1)), mask=mask)
      for name, mask in masks.items()
  }


def test_one_token_is_enough():
  watch = _empty_masks.Watch()
  one = jnp.zeros((2, 3, 1)).at[1, 2].set(1)
  for step in range(4):
    watch.add(_states(a=one, b=None), step=step)
  assert jax.tree.leaves(_states(a=one))[1] == 1


def test_the_first_step_says_it_at_once():
  with pytest.raises(ValueError, match=r'in step 7, .* train_losses\.b'):
    _empty_masks.Watch().add(_states(a=None, b=jnp.zeros((2, 3, 1))), step=8)


def test_says_which_loss_and_when():
  watch = _empty_masks.Watch()
  watch.add(_states(a=None), step=1)
  watch.add(_states(a=None, b=jnp.zeros((2, 3, 1))), step=2)
  watch.add(_states(a=None), step=3)
  with pytest.raises(ValueError, match=r'in step 1, .* train_losses\.b was'):
    watch.add(_states(a=None), step=4)


@pytest.mark.parametrize('empty', [2, 3, 4])
def test_nothing_is_pending_after_the_last_step(empty):
  watch = _empty_masks.Watch()
  with pytest.raises(ValueError, match=f'in step {empty - 1}, '):
    for step in range(1, 5):
      mask = jnp.full((2, 3, 1), step != empty)
      watch.add(_states(a=mask), step=step, num_steps=4)


def test_states_without_a_count_are_none_of_it():
  watch = _empty_masks.Watch()
  for step in range(4):
    mine = kd.metrics.AverageState.from_values(jnp.zeros(3))
    watch.add({'mine': mine}, step=step)
