"""A metric that no step could be compared by is an error at the start."""

import math

from kauldron import kd
import numpy as np
import pytest

from gemma4_lora import g4
from gemma4_lora.ckpts import _best_metric
from tests.lib import models
from tests.lib import training

_ACCURACY = kd.metrics.Accuracy(logits='preds.logits', labels='batch.target')


def _evaluator(run):
  return kd.evals.Evaluator(
      run=run,
      ds=kd.data.py.DataSource(
          data_source=training.RandomTokens(),
          shuffle=False,
          batch_size=8,
          num_workers=0,
      ),
  )


def _check(path, tmp_path, *, log=1, every=10, **kwargs):
  trainer = training.make_trainer(
      models.lora(rank=2, targets='q'),
      tmp_path,
      num_train_steps=100,
      train_metrics={'acc': _ACCURACY},
      evals={
          'ev': _evaluator(kd.evals.EveryNSteps(5)),
          'rare': _evaluator(kd.evals.EveryNSteps(20)),
          'apart': _evaluator(kd.evals.StandaloneLastCheckpoint(executor=None)),
      },
      checkpointer=g4.ckpts.Checkpointer(
          save_interval_steps=every, best_metric_path=path, **kwargs
      ),
  ).replace(log_metrics_every=log)
  _best_metric.check(trainer.checkpointer, trainer, who='Checkpointer')


@pytest.mark.parametrize('path', ['ev.acc', 'ev.acc.top_1', 'train.acc', None])
def test_what_is_there_when_a_step_is_saved(path, tmp_path):
  _check(path, tmp_path)


@pytest.mark.parametrize(
    ('path', 'message'),
    [
        (
            'nope',
            r"='nope' is no metric of the run, which has train\.acc, ev\.",
        ),
        ('ev.accc', "Did you mean 'ev.acc'"),
        ('ev.accurate', "Did you mean 'ev.acc'"),
        ('ev', 'It is NAME.METRIC'),
        ('apart.acc', 'that runs along with training'),
        ('rare.acc', "saved every 10 steps, and 'rare' runs at others.*n=20"),
    ],
)
def test_what_is_not(path, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    _check(path, tmp_path)


def test_metrics_of_training_that_are_logged_between_saves(tmp_path):
  with pytest.raises(ValueError, match='log_metrics_every=1. Got: 7'):
    _check('train.acc', tmp_path, log=7)
  _check('train.acc', tmp_path, log=7, max_to_keep=None)  # Nothing is compared.


def test_no_mode(tmp_path):
  with pytest.raises(ValueError, match="best_mode= takes one of .*'maximum'"):
    _check('ev.acc', tmp_path, best_mode='maximum')


def test_what_is_compared(caplog):
  def comparable(metrics, path='ev.acc'):
    return _best_metric.comparable(metrics, path, who='x')

  good = {'ev': {'acc': np.float32(0.5)}}
  assert comparable(good) is good
  assert comparable(None) is None
  assert comparable({'a': 1}, path=None) == {'a': 1}
  assert comparable({'other': {'acc': 1}}) is None  # Not evaluated at it.
  assert not caplog.text
  assert comparable({'ev': {'acc': math.nan}}) is None
  assert 'ev.acc is nan: the step is kept' in caplog.text
  for bad in ({'ev': {'b': 1}}, {'ev': {'acc': {'x': 1}}}):
    with pytest.raises(
        ValueError, match="'ev.acc' is no number of the metrics"
    ):
      comparable(bad)
