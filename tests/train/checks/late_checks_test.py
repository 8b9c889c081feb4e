"""What a step says of itself ends a run: late, but before a save, and for all."""

import dataclasses

import jax
import jax.numpy as jnp
from kauldron import kd
import numpy as np
import pytest

from gemma4_lora import g4
from gemma4_lora.train.checks import _bad_steps
from gemma4_lora.train.checks import _empty_masks
from gemma4_lora.train.checks import _late_checks
from tests.lib import models
from tests.lib import states
from tests.lib import training


@dataclasses.dataclass(frozen=True)
class _Marked(training.RandomTokens):
  """Rows whose masks and labels are bad from some row on, eight to a step."""

  first_bad: int = 1000
  mask: float = 1.0
  label: int | None = None

  def __getitem__(self, index):
    row = super().__getitem__(index)
    shape = row['target'].shape
    is_bad = index >= self.first_bad
    mask = np.full(shape, self.mask if is_bad else 1.0, np.float32)
    if is_bad and self.label is not None:
      row['target'][:2] = self.label
      mask[0] = 0.0  # One of the two counts.
    return row | {'loss_mask': mask}


def _trainer(tmp_path, source, *, checkpointer=None, **kwargs):
  """Returns a trainer of three or more steps: one program for all of them."""
  model = models.base(cut=models.one_layer)
  loss = g4.losses.SoftmaxCrossEntropyWithIntLabels(
      head='preds.head', labels='batch.target', mask='batch.loss_mask'
  )
  trainer = training.make_trainer(
      g4.nn.LoRA(rank=2, targets='q', model=model, logits_in_training=False),
      tmp_path,
      num_train_steps=3,
      data_source=source,
      train_losses={'xent': loss},
      trainstep=training.SharedStep(key=__name__, **kwargs),
      checkpointer=checkpointer or kd.ckpts.NoopCheckpointer(),
  )
  ds = dataclasses.replace(trainer.train_ds, shuffle=False)
  return dataclasses.replace(trainer, train_ds=ds)


def test_a_mask_of_zero(tmp_path):
  """The second batch is empty: so says the step after the next."""
  trainer = _trainer(tmp_path, _Marked(first_bad=8, mask=0))
  with pytest.raises(
      ValueError,
      match=r'in step 1, .*train_losses\.xent was zero .*allow_empty_masks=True',
  ):
    trainer.train()


def test_the_last_batch_of_a_run(tmp_path):
  """After it nothing begins that could look back; a second run counts anew."""
  trainer = _trainer(tmp_path, _Marked(first_bad=24, mask=0))
  for _ in range(2):
    with pytest.raises(ValueError, match='in step 3, the mask of train_losses'):
      trainer.train()


def test_may_be_allowed(tmp_path):
  source = _Marked(first_bad=8, mask=0)
  state, _ = _trainer(tmp_path, source, allow_empty_masks=True).train()
  assert int(state.step) == 4


@pytest.mark.parametrize('label', [-100, 1024])
def test_a_label_that_is_no_token(label, tmp_path):
  """At once, after the first step; where the mask is zero, it may be."""
  trainer = _trainer(tmp_path, _Marked(first_bad=0, label=label))
  with pytest.raises(
      ValueError,
      match=(
          r'in step 0: 8 labels that train_losses\.xent counts are no token of'
          r' the vocabulary, 0 to 1023.*-100.* mask="batch\.loss_mask"'
      ),
  ):
    trainer.train()


@pytest.mark.parametrize(
    'checkpointer',
    [kd.ckpts.Checkpointer, g4.ckpts.Checkpointer, g4.ckpts.LoRACheckpointer],
)
def test_nothing_bad_is_saved(checkpointer, tmp_path):
  """The second step turns it NaN; the save after it does not come."""
  trainer = _trainer(
      tmp_path,
      _Marked(first_bad=8, mask=np.nan),
      checkpointer=checkpointer(save_interval_steps=1),
  )
  with pytest.raises(
      FloatingPointError,
      match=(
          r'NaN or infinite.*lora.*last checkpoint is from before: step 1 of'
          rf' {tmp_path}.*clip_by_global_norm.*max_bad_steps=None'
      ),
  ):
    trainer.train()
  steps = sorted(x.name for x in (tmp_path / 'checkpoints').glob('ckpt_*'))
  assert steps == ['ckpt_0', 'ckpt_1']


def test_goes_on_regardless_and_saves_nothing_bad(tmp_path, caplog):
  trainer = _trainer(
      tmp_path,
      _Marked(first_bad=8, mask=np.nan),
      checkpointer=g4.ckpts.LoRACheckpointer(save_interval_steps=1),
      max_bad_steps=None,
  )
  state, _ = trainer.train()
  assert int(state.step) == 4
  assert 'step 2 is not saved: ' in caplog.text
  steps = sorted(x.name for x in (tmp_path / 'checkpoints').glob('ckpt_*'))
  assert steps == ['ckpt_0', 'ckpt_1']
  with pytest.raises(ValueError, match='lora.q.a.*The run diverged'):
    g4.nn.fuse_params(trainer.model, state.params)


@pytest.mark.parametrize('num', [0, -1, 1.5])
def test_no_number_of_bad_steps(num):
  if num == 0:  # As None: it goes on.
    assert g4.train.TrainStep(max_bad_steps=num).max_bad_steps == 0
    return
  with pytest.raises(ValueError, match='max_bad_steps= takes a positive'):
    g4.train.TrainStep(max_bad_steps=num)


def test_losses_alone_may_be_bad_for_a_while():
  """As under `optax.apply_if_finite`; a good one in between starts anew."""
  counter = _bad_steps.Counter()

  def check(step, is_bad, value=1.0):
    counter.check(
        is_bad,
        step,
        state=states.wrap({'lora': {'a': jnp.array(value)}}),
        most=2,
        checkpointer=kd.ckpts.NoopCheckpointer(),
    )

  for step, is_bad in enumerate([True, False, True]):
    check(step, is_bad)
  with pytest.raises(
      FloatingPointError, match=r'step 3 .*the 2\. in a row; .*no checkpoint'
  ):
    check(3, True)
  counter.restart()
  with pytest.raises(
      FloatingPointError, match=r'step 4 .*recover: .*lora\.a\.'
  ):
    check(4, True, np.nan)


def _states(**masks):
  state = kd.losses.Loss.State
  return {
      name: state.from_values(values=jnp.ones((2, 3, 1)), mask=mask)
      for name, mask in masks.items()
  }


def _add(watch, states, **kwargs):
  watch.add(states, check=_empty_masks.check, **kwargs)


def test_one_token_is_enough():
  watch = _late_checks.Watch()
  one = jnp.zeros((2, 3, 1)).at[1, 2].set(1)
  for step in range(4):
    _add(watch, _states(a=one, b=None), step=step)
  assert jax.tree.leaves(_states(a=one))[1] == 1


def test_the_first_step_says_it_at_once():
  with pytest.raises(ValueError, match=r'in step 7, .* train_losses\.b'):
    states = _states(a=None, b=jnp.zeros((2, 3, 1)))
    _add(_late_checks.Watch(), states, step=8)


def test_says_which_loss_and_when():
  watch = _late_checks.Watch()
  _add(watch, _states(a=None), step=1)
  _add(watch, _states(a=None, b=jnp.zeros((2, 3, 1))), step=2)
  _add(watch, _states(a=None), step=3)
  with pytest.raises(ValueError, match=r'in step 1, .* train_losses\.b was'):
    _add(watch, _states(a=None), step=4)


@pytest.mark.parametrize('empty', [2, 3, 4])
def test_nothing_is_pending_where_all_wait(empty):
  watch = _late_checks.Watch()
  with pytest.raises(ValueError, match=f'in step {empty - 1}, '):
    for step in range(1, 5):
      mask = jnp.full((2, 3, 1), step != empty)
      _add(watch, _states(a=mask), step=step, waits=lambda step: step == 4)


def test_states_without_a_count_are_none_of_it():
  watch = _late_checks.Watch()
  for step in range(4):
    mine = kd.metrics.AverageState.from_values(jnp.zeros(3))
    _add(watch, {'mine': mine}, step=step)
