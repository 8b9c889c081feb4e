"""Gradients taken part by part are those of the whole batch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from kauldron import kd
import numpy as np
import optax
import pytest

from gemma4_lora import g4
from tests.lib import models
from tests.lib import random_params
from tests.lib import training

# Live tokens by sequence: parts have 12 + 1, 1, 5 and none.
_LIVE = np.array([12, 1, 3, 0, 1, 0, 2, 0])


@dataclasses.dataclass(frozen=True)
class _Masked(training.RandomTokens):
  """Sequences of which very different numbers of tokens count."""

  def __getitem__(self, index):
    example = super().__getitem__(index)
    live = np.arange(len(example['input'])) < _LIVE[index % 8]
    return example | {'mask': live[:, None]}


def _trainer(workdir, num_microbatches, **kwargs):
  model = g4.nn.LoRA(
      rank=2,
      targets=('q', 'down'),
      model=models.base(cut=models.one_layer, dtype=jnp.float32),
  )
  return training.make_trainer(
      model,
      workdir,
      num_train_steps=1,
      checkpointer=None,
      data_source=_Masked(num_examples=8),
      trainstep=g4.train.TrainStep(num_microbatches=num_microbatches),
      sharding=kd.sharding.ShardingStrategy(batch=kd.sharding.REPLICATED),
      train_losses={
          'xent': kd.losses.SoftmaxCrossEntropyWithIntLabels(
              logits='preds.logits', labels='batch.target', mask='batch.mask'
          )
      },
      train_metrics={
          'accuracy': kd.metrics.Accuracy(
              logits='preds.logits', labels='batch.target', mask='batch.mask'
          ),
          'norm': kd.metrics.TreeReduce(
              metric=kd.metrics.Norm(tensor='preds.logits')
          ),
      },
      **kwargs,
  )


@functools.cache
def _step(num_microbatches):
  """Returns what one step of plain gradient descent makes."""
  trainer = _trainer('/unused', num_microbatches)
  trainer = trainer.replace(
      optimizer=kd.optim.partial_updates(
          optax.sgd(1.0), mask=kd.optim.select('lora')
      )
  )
  params = random_params.make(trainer.model)
  state = kd.train.TrainState(
      step=jnp.asarray(0),
      params=params,
      opt_state=trainer.optimizer.init(params),
      collections={},
  )
  state = jax.device_put(state, kd.sharding.REPLICATED)
  batch = {
      key: np.stack([_Masked()[i][key] for i in range(8)])
      for key in ('input', 'target', 'mask')
  }
  batch = jax.device_put(batch, kd.sharding.REPLICATED)
  before = jax.tree.map(np.asarray, params)
  lean = trainer.trainstep.step(jax.tree.map(jnp.copy, state), batch)[1]
  assert lean.loss_states is lean.metric_states is lean.summary_states is None
  state, aux = trainer.trainstep.step(
      state, batch, return_losses=True, return_metrics=True
  )
  return before, jax.tree.map(np.asarray, state.params), aux.compute()


@pytest.mark.parametrize('num', [4, 8])
def test_loss_and_gradients_are_those_of_the_whole_batch(num):
  """In float32, to its rounding; kd's mean of a bfloat16 loss rounds coarser."""
  before, whole, aux = _step(1)
  _, parts, aux_parts = _step(num)
  for name, want in aux.loss_values.items():
    np.testing.assert_allclose(aux_parts.loss_values[name], want, rtol=1e-6)
  metrics = {x for x in aux.metric_values if x.startswith('metrics/')}
  assert 'metrics/grad_norm' in metrics
  for name in metrics:  # Others are of the machine.
    np.testing.assert_allclose(
        aux_parts.metric_values[name], aux.metric_values[name], rtol=1e-5
    )
  old, one, many = map(training.flat, (before, whole, parts))
  for path, leaf in one.items():
    if 'lora' not in path:
      np.testing.assert_array_equal(many[path], old[path])
      continue
    step, got = leaf - old[path], many[path] - old[path]
    assert np.any(step), path
    error = np.linalg.norm(got - step) / np.linalg.norm(step)
    assert error < 1e-4, (path, error)


def test_a_batch_that_cannot_be_split(tmp_path):
  with pytest.raises(ValueError, match=r'num_microbatches=3 equal parts'):
    _trainer(tmp_path, 3).train()


@pytest.mark.parametrize('num', [0, 1.5])
def test_no_number_of_parts(num):
  with pytest.raises(ValueError, match=r'num_microbatches= takes a positive'):
    g4.train.TrainStep(num_microbatches=num)
