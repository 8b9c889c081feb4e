"""Batches that devices cannot share, and data that end too soon, are named."""

import dataclasses

from grain import python as grain
import jax
from kauldron import kd
import pytest

from gemma4_lora.train.checks import _enough_rows
from tests.lib import models
from tests.lib import training

_NUM = jax.device_count()


def _trainer(*, evals=None, **kwargs):
  """Has 32 rows, and a run of four batches."""
  trainer = training.make_trainer(
      models.lora(rank=2, cut=models.one_layer),
      '/unused',
      num_train_steps=3,
      checkpointer=kd.ckpts.NoopCheckpointer(),
  )
  ds = dataclasses.replace(trainer.train_ds, **kwargs)
  trainer = dataclasses.replace(trainer, train_ds=ds)
  if evals is not None:
    evals = {'val': _evaluator(ds, **evals)}
    trainer = dataclasses.replace(trainer, evals=evals)
  return trainer


def _evaluator(ds, *, num_batches=None, **kwargs):
  kwargs = {'num_epochs': 1, 'batch_drop_remainder': False} | kwargs
  return kd.evals.Evaluator(
      run=kd.evals.EveryNSteps(n=1),
      ds=dataclasses.replace(ds, **kwargs),
      num_batches=num_batches,
  )


def _check(trainer):
  _enough_rows.check(trainer, num_steps=4)


def test_a_batch_that_devices_cannot_share():
  with pytest.raises(
      ValueError,
      match=rf'train_ds has batch_size=4, .* {_NUM} devices. Set batch_size={_NUM}',
  ):
    _check(_trainer(batch_size=4))
  with pytest.raises(ValueError, match=r'evals\.val\.ds has batch_size=12'):
    _check(_trainer(evals={'batch_size': 12}))
  trainer = _trainer(batch_size=4)
  replicated = kd.sharding.ShardingStrategy(batch=kd.sharding.REPLICATED)
  _check(dataclasses.replace(trainer, sharding=replicated))


def test_a_smaller_last_batch():
  kwargs = {'data_source': training.RandomTokens(num_examples=20)}
  with pytest.raises(
      ValueError,
      match=(
          r'last batch of evals\.val\.ds has 4 of 20 rows.*'
          r' batch_drop_remainder="drop" or "pad"'
      ),
  ):
    _check(_trainer(evals=kwargs))
  _check(_trainer(evals=kwargs | {'num_batches': 2}))  # It is never reached.
  _check(_trainer(evals=kwargs | {'batch_drop_remainder': 'pad'}))
  _check(_trainer(evals=kwargs | {'batch_drop_remainder': True}))
  _check(
      _trainer(evals={'data_source': training.RandomTokens(num_examples=16)})
  )

  class Some(grain.FilterTransform):

    def filter(self, element):
      return True

  _check(_trainer(evals=kwargs | {'transforms': [Some()]}))  # Nobody knows.


def test_data_that_end_too_soon():
  with pytest.raises(
      ValueError,
      match=(
          r'train_ds ends after 2 batches \(num_epochs=1, batch_size=16\), and'
          r' the run takes 4\. Set num_epochs=None, .* num_train_steps=1'
      ),
  ):
    _check(_trainer(num_epochs=1, batch_size=16))
  _check(_trainer(num_epochs=2, batch_size=16))
  _check(_trainer(batch_size=16))
