"""What reads logits that training does not make is an error at the start."""

from kauldron import kd
import pytest

from gemma4_lora import g4
from gemma4_lora.ckpts import _needs_logits
from tests.lib import models

_KEYS = {'logits': 'preds.logits', 'labels': 'batch.target'}
_LOSS = kd.losses.SoftmaxCrossEntropyWithIntLabels(**_KEYS)


def _check(*, logits_in_training=False, losses=(), metrics=(), summaries=()):
  model = models.lora(rank=2, logits_in_training=logits_in_training)
  aux = kd.train.Auxiliaries(
      losses=dict(losses), metrics=dict(metrics), summaries=dict(summaries)
  )
  _needs_logits.check(model, aux, who='x')


def test_a_loss_of_kauldrons():
  with pytest.raises(
      ValueError,
      match=r'train_losses\.x reads .* Write g4\.losses\.SoftmaxCr.*head="preds',
  ):
    _check(losses={'x': _LOSS})


def test_a_metric_and_a_summary():
  accuracy = {'x': kd.metrics.Accuracy(**_KEYS)}
  with pytest.raises(ValueError, match='train_metrics.x .*g4.losses.Accuracy'):
    _check(metrics=accuracy)
  with pytest.raises(
      ValueError, match='train_summaries.x .* Set logits_in_tra'
  ):
    _check(summaries=accuracy)


def test_what_has_its_logits_or_needs_none():
  _check(losses={'x': _LOSS}, logits_in_training=True)
  _check(metrics={'x': kd.metrics.SkipIfMissing(kd.metrics.Accuracy(**_KEYS))})
  ours = g4.losses.SoftmaxCrossEntropyWithIntLabels(
      head='preds.head', labels='batch.target'
  )
  _check(losses={'x': ours})
