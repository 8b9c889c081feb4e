"""Which metrics can be taken of parts of a batch, and what they read."""

import types

import jax.numpy as jnp
from kauldron import kd
import pytest

from gemma4_lora.train import _metrics_of_microbatches

_Norm = kd.metrics.Norm


def _step(metric):
  aux = kd.train.Auxiliaries(losses={}, metrics={'x': metric}, summaries={})
  return types.SimpleNamespace(aux=aux)


@pytest.mark.parametrize('wrap', [kd.metrics.TreeReduce, kd.metrics.TreeMap])
def test_gradients_within_a_metric_of_trees(wrap):
  reads = _metrics_of_microbatches.reads_gradients
  assert reads(_step(wrap(metric=_Norm(tensor='grads'))))
  assert reads(_step(wrap(metric=_Norm(tensor='grads.**.a'))))
  assert not reads(_step(wrap(metric=_Norm(tensor='params'))))


def _of_microbatch(metric):
  preds = {'logits': jnp.ones((2, 3, 4))}
  context = types.SimpleNamespace(preds=preds, grads=jnp.ones(3))
  return _metrics_of_microbatches.of_microbatch(
      _step(metric), context, who='step'
  )


@pytest.mark.parametrize(
    'metric',
    [
        kd.metrics.TreeReduce(metric=_Norm(tensor='preds')),
        _Norm(tensor='preds.logits', axis=-2),
        _Norm(tensor='preds.logits', axis=None, aggregation_type='concat'),
        kd.metrics.SkipIfMissing(_Norm(tensor='preds.logits')),
    ],
)
def test_means_over_examples_are_taken_of_parts(metric):
  assert list(_of_microbatch(metric)) == [('metrics', 'x')]


@pytest.mark.parametrize('axis', [None, 0, -3, (0, 1)])
def test_a_norm_over_all_examples_is_an_error(axis):
  norm = _Norm(tensor='preds.logits', axis=axis)
  for metric in (norm, kd.metrics.SkipIfMissing(norm)):
    with pytest.raises(
        ValueError,
        match=r'train_metrics\.x takes one norm .*num_microbatches=1',
    ):
      _of_microbatch(metric)
