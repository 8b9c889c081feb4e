"""Kauldron's numbers, with fewer programs and without random base weights."""

import functools
import json

from gemma import gm
import jax
import jax.numpy as jnp
from kauldron import kd
from kauldron import konfig
import numpy as np
import optax
import pytest

from gemma4_lora import g4
from tests.lib import models
from tests.lib import training

_model = functools.partial(
    models.lora,
    cut=models.one_layer,
    base_dtype=jnp.bfloat16,
    rank=4,
    dropout=0.1,
)


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
      jax.tree_util.tree_leaves_with_path(one),
      jax.tree.leaves(two),
      strict=True,
  ):
    name = jax.tree_util.keystr(path)
    np.testing.assert_array_equal(x, y, err_msg=name)
    assert x.sharding.is_equivalent_to(y.sharding, x.ndim), name


def test_the_run_is_kauldrons_bit_for_bit(tmp_path):
  """FSDP on eight devices; also when it stops and goes on."""
  model = _model('Gemma4_31B', targets=('q', 'down'))
  g4.testing.make_checkpoint(model, tmp_path / 'released')
  sharding = kd.sharding.ShardingStrategy(
      params=kd.sharding.FSDPSharding(min_size_to_shard_mb=0)
  )

  def run(workdir, trainstep, **kwargs):
    return _trainer(
        model,
        tmp_path / workdir,
        tmp_path / 'released',
        trainstep=trainstep,
        sharding=sharding,
        checkpointer=kd.ckpts.Checkpointer(save_interval_steps=1),
        **kwargs,
    ).train()

  want, want_aux = run('kauldron', kd.train.TrainStep())
  ours = training.SharedStep(key=str(tmp_path))
  run('ours', ours, num_train_steps=1)
  got, aux = run('ours', ours)
  _assert_same(got, want)
  assert aux.compute().loss_values == want_aux.compute().loss_values
  assert aux.compute().metric_values['metrics/grad_norm'] > 0


@pytest.mark.parametrize(
    'settings',
    [
        {'use_dora': True, 'modules_to_save': ['final_norm', 'router']},
        {'init_lora_weights': 'pissa'},
    ],
    ids=str,
)
def test_init_is_kauldrons_bit_for_bit(settings, tmp_path):
  """A of what does not start from the base is drawn as Kauldron draws it."""
  model = _model('Gemma4_26B_A4B', **settings)
  g4.testing.make_checkpoint(model, tmp_path / 'released')

  def init(trainstep):
    trainer = _trainer(
        model, tmp_path / 'run', tmp_path / 'released', trainstep=trainstep
    )
    return trainer.init_state()

  _assert_same(init(g4.train.TrainStep()), init(kd.train.TrainStep()))


@pytest.mark.parametrize(
    'settings',
    [
        {'use_dora': True, 'modules_to_save': ['final_norm']},
        {'init_lora_weights': 'pissa'},
        {'init_lora_weights': 'olora'},
        {'init_lora_weights': 'loftq', 'quantize': 'int8'},
    ],
    ids=str,
)
def test_leaves_that_wait_for_the_base_are_no_nan(settings, tmp_path):
  """`jax_debug_nans` has nothing to stop at."""
  model = _model('Gemma4_31B', targets='q', **settings)
  g4.testing.make_checkpoint(model, tmp_path / 'released')
  trainer = _trainer(
      model,
      tmp_path / 'run',
      tmp_path / 'released',
      trainstep=g4.train.TrainStep(),
  )
  with jax.debug_nans(True):
    state = trainer.init_state()
  assert all(np.all(np.abs(x) < 1e3) for x in jax.tree.leaves(state.params))


def test_one_step_and_no_init_is_compiled(tmp_path, caplog):
  """Also where losses, metrics and summaries are due at different steps."""
  model = _model('Gemma4_31B')
  g4.testing.make_checkpoint(model, tmp_path / 'released')
  trainer = _trainer(
      model,
      tmp_path / 'run',
      tmp_path / 'released',
      num_train_steps=4,
      trainstep=g4.train.TrainStep(),
      train_metrics={
          'norm': kd.metrics.Norm(tensor='grads.layer_0.mlp.lora.up.b'),
      },
  ).replace(log_metrics_every=2, log_summaries_every=3)
  with jax.log_compiles(), caplog.at_level('WARNING', logger='jax'):
    state, _ = trainer.train()
    specs = trainer.state_specs
  compiled = [
      m.split()[4] for m in caplog.messages if 'XLA compilation of' in m
  ]
  assert compiled.count('jit(step)') == 1, compiled
  assert 'jit(_init_model)' not in compiled
  assert 'jit(init_state)' not in compiled
  if state.opt_state is None:  # Kauldron HEAD, 2026-08-21: `train` frees it.
    specs = specs.replace(opt_state=None)
  assert jax.tree.structure(specs) == jax.tree.structure(state)


def test_a_transform_that_is_not_ours(tmp_path, caplog):
  """Kauldron's own init, and a line that says so."""
  trainer = training.make_trainer(
      _model('Gemma4_31B'),
      tmp_path,
      num_train_steps=0,
      trainstep=g4.train.TrainStep(),
  )
  with caplog.at_level('INFO', logger='absl'):
    state = trainer.init_state()
  assert (
      'drawn at random first: init_transform= has a NoopTransform'
      in caplog.text
  )
  assert not any(
      isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(state)
  )


def test_clipping_outside_is_warned_of(tmp_path, caplog):
  model = _model('Gemma4_31B')
  g4.testing.make_checkpoint(model, tmp_path / 'released')
  trainer = _trainer(
      model, tmp_path, tmp_path / 'released', trainstep=g4.train.TrainStep()
  )
  trainer = trainer.replace(
      optimizer=optax.chain(optax.clip_by_global_norm(1.0), trainer.optimizer)
  )
  with caplog.at_level('WARNING', logger='absl'):
    trainer.init_state()
  assert 'optimizer= reads the gradients of' in caplog.text
  assert 'kd.optim.partial_updates(optax.chain(' in caplog.text


@pytest.mark.parametrize(
    ('settings', 'kwargs', 'match'),
    [
        ({}, {'select': 'Lora'}, 'nothing would train'),
        ({}, {'select': '.*'}, 'all 14 leaves of the base model'),
        (
            {},
            {'init_transform': gm.ckpts.LoadCheckpoint(path='/x')},
            'Wrap it in SkipLoRA4',
        ),
        ({'logits_in_training': False}, {}, 'reads preds.logits'),
        ({}, {'batch_size': 4}, 'cannot be split over'),
    ],
    ids=str,
)
def test_what_could_not_train_is_refused_by_init(
    settings, kwargs, match, tmp_path
):
  trainer = training.make_trainer(
      _model('Gemma4_31B', targets='q', **settings),
      tmp_path,
      num_train_steps=1,
      **kwargs,
  )
  with pytest.raises(ValueError, match=match):
    trainer.init_state()


def test_in_a_config():
  """Survives JSON."""
  with konfig.imports():
    from gemma4_lora import g4 as lazy
  cfg = konfig.ConfigDict(
      {'trainstep': lazy.train.TrainStep(num_microbatches=2)}
  )
  again = konfig.ConfigDict(json.loads(cfg.to_json()))
  assert konfig.resolve(again)['trainstep'].num_microbatches == 2
