"""Kauldron's numbers, with fewer programs and without random base weights."""

import jax
from jax import monitoring
from kauldron import kd
from kauldron import konfig
import numpy as np
import optax
import pytest

from gemma4_lora import g4
from tests import training

_COMPILE = '/jax/core/compile/backend_compile_duration'


def _model(variant, **kwargs):
  base = training.shallow(getattr(g4.testing, variant)(tokens='batch.input'))
  return g4.nn.LoRA(rank=4, dropout=0.1, model=base, **kwargs)


def _trainer(model, workdir, released, *, num_train_steps=2, **kwargs):
  return training.make_trainer(
      model,
      workdir,
      num_train_steps=num_train_steps,
      init_transform=g4.ckpts.SkipLoRA4(
          wrapped=g4.ckpts.PartialLoad(path=released), model=model
      ),
      **kwargs,
  )


def _assert_same(one, two):
  assert jax.tree.structure(one) == jax.tree.structure(two)
  for (path, x), y in zip(
      jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(two), strict=True
  ):
    name = jax.tree_util.keystr(path)
    np.testing.assert_array_equal(x, y, err_msg=name)
    assert x.sharding.is_equivalent_to(y.sharding, x.ndim), name


@pytest.mark.parametrize('variant', ['Gemma4_E2B', 'Gemma4_26B_A4B'])
def test_the_run_is_kauldrons_bit_for_bit(variant, tmp_path):
  """FSDP on eight devices; also when it stops and goes on."""
  model = _model(variant)
  g4.testing.make_checkpoint(model, tmp_path / 'released')
  sharding = kd.sharding.ShardingStrategy(
      params=kd.sharding.FSDPSharding(min_size_to_shard_mb=0)
  )
  checkpointer = {
      'Gemma4_E2B': g4.ckpts.LoRACheckpointer,
      'Gemma4_26B_A4B': kd.ckpts.Checkpointer,
  }[variant]

  def run(workdir, trainstep, **kwargs):
    return _trainer(
        model,
        tmp_path / workdir,
        tmp_path / 'released',
        trainstep=trainstep,
        sharding=sharding,
        checkpointer=checkpointer(save_interval_steps=1),
        **kwargs,
    ).train()

  want, want_aux = run('kauldron', kd.train.TrainStep())
  run('ours', g4.train.TrainStep(), num_train_steps=1)
  got, aux = run('ours', g4.train.TrainStep())
  _assert_same(got, want)
  assert aux.compute().loss_values == want_aux.compute().loss_values


@pytest.mark.parametrize(
    'settings',
    [
        {},
        {'use_dora': True},
        {'init_lora_weights': 'orthogonal'},
        {'init_lora_weights': 'pissa'},
        {'modules_to_save': ['final_norm', 'router']},
    ],
    ids=str,
)
def test_init_is_kauldrons_bit_for_bit(settings, tmp_path):
  model = _model('Gemma4_26B_A4B', **settings)
  g4.testing.make_checkpoint(model, tmp_path / 'released')

  def init(trainstep):
    trainer = _trainer(
        model, tmp_path / 'run', tmp_path / 'released', trainstep=trainstep
    )
    return trainer.init_state()

  _assert_same(init(g4.train.TrainStep()), init(kd.train.TrainStep()))
