"""Training on a quantised base: in the Trainer, sharded, and resumed."""

import functools

import jax
import jax.numpy as jnp
from kauldron import kd
import numpy as np
import optax
import pytest

from gemma4_lora import g4
from tests.lib import models
from tests.lib import training

_QUANTIZE = (g4.quant.Int8('embeddings'), g4.quant.Int4(group_size=2))


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
  path = tmp_path_factory.mktemp('base') / 'ckpt'
  return path, g4.testing.make_checkpoint(_base(), path)


_base = functools.partial(models.base, cut=models.one_layer, dtype=jnp.float32)


def _trainer(checkpoint, workdir, num_train_steps, *, quantize=_QUANTIZE, **kw):
  path, _ = checkpoint
  # The base is quantised whole; half as many linears compile in half the time.
  model = g4.nn.LoRA(
      rank=2, targets=('q', 'down'), model=_base(), quantize=quantize
  )
  return training.make_trainer(
      model,
      workdir,
      num_train_steps=num_train_steps,
      init_transform=g4.ckpts.SkipLoRA4(
          wrapped=g4.ckpts.PartialLoad(path=path)
      ),
      **kw,
  )


def _arrays(state):
  return {k: np.asarray(x) for k, x in training.flat(state.params).items()}


def test_a_b_train_and_nothing_else(checkpoint, tmp_path):
  """Clipping and parts of batches included; Adam has moments of A and B alone."""
  trainer = _trainer(
      checkpoint,
      tmp_path,
      3,
      checkpointer=None,
      trainstep=g4.train.TrainStep(num_microbatches=2),
  )
  trainer = trainer.replace(
      optimizer=kd.optim.partial_updates(
          optax.chain(optax.clip_by_global_norm(1e-3), optax.adam(1e-2)),
          mask=kd.optim.select('lora'),
      )
  )
  state = trainer.init_state()
  before = _arrays(state)
  state, _ = trainer.train()
  after = _arrays(state)
  changed = {k for k in after if (before[k] != after[k]).any()}
  assert changed == {k for k in after if 'lora' in k}
  floats = [
      x
      for x in jax.tree.leaves(state.opt_state)
      if jnp.issubdtype(x.dtype, jnp.floating)
  ]
  lora = [x for k, x in after.items() if 'lora' in k]
  assert sum(x.size for x in floats) == 2 * sum(x.size for x in lora)


@pytest.mark.parametrize(
    ('checkpointer', 'trainstep'),
    [
        (g4.ckpts.LoRACheckpointer, training.SharedStep(key=__name__)),
        (kd.ckpts.Checkpointer, kd.train.TrainStep()),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(
    checkpointer, trainstep, checkpoint, tmp_path
):
  """Bit for bit; Kauldron's own checkpointer saves codes and scales too."""

  def run(workdir, *steps):
    for num in steps:
      trainer = _trainer(
          checkpoint,
          tmp_path / workdir,
          num,
          checkpointer=checkpointer(save_interval_steps=2),
          trainstep=trainstep,
      )
      if checkpointer is kd.ckpts.Checkpointer:
        optimizer = g4.optim.keep_integers(trainer.optimizer)
        trainer = trainer.replace(optimizer=optimizer)
      state, _ = trainer.train()
    return _arrays(state)

  whole = run('whole', 4)
  resumed = run('resumed', 2, 4)
  assert whole.keys() == resumed.keys()
  for path, x in whole.items():
    np.testing.assert_array_equal(resumed[path], x, err_msg=path)


def test_sharded_codes_and_scales_give_the_same_losses(checkpoint, tmp_path):
  fsdp = kd.sharding.FSDPSharding(min_size_to_shard_mb=1e-3)
  sharding = kd.sharding.ShardingStrategy(params=fsdp)

  def run(name, **kwargs):
    trainer = _trainer(
        checkpoint, tmp_path / name, 2, checkpointer=None, **kwargs
    )
    state, aux = trainer.train()
    return state, aux

  state, _ = run('sharded', sharding=sharding)
  whole, _ = run('whole')
  for path, x in training.flat(state.params).items():
    if path.endswith(('q_einsum.w.codes', 'q_einsum.w.scales')):
      assert not x.sharding.is_fully_replicated, path
  for path, x in _arrays(whole).items():
    np.testing.assert_allclose(
        np.asarray(training.flat(state.params)[path], np.float32),
        np.asarray(x, np.float32),
        atol=1e-4,
        err_msg=path,
    )


def test_codes_that_orbax_cannot_write_are_an_error_at_the_start(
    checkpoint, tmp_path
):
  trainer = _trainer(
      checkpoint, tmp_path, 1, quantize=g4.quant.NF4('q', group_size=2)
  )
  with pytest.raises(
      ValueError, match=r'q_einsum.w.codes is uint4.*g4.ckpts.LoRACheckpointer'
  ):
    trainer.init_state()


def test_magnitudes_of_dora_are_norms_of_what_codes_stand_for(
    checkpoint, tmp_path
):
  path, _ = checkpoint
  quantize = g4.quant.Int4('q', group_size=2)
  model = g4.nn.LoRA(
      rank=2, model=_base(), targets='q', use_dora=True, quantize=quantize
  )
  trainer = training.make_trainer(
      model,
      tmp_path,
      num_train_steps=1,
      checkpointer=None,
      init_transform=g4.ckpts.SkipLoRA4(
          wrapped=g4.ckpts.PartialLoad(path=path)
      ),
  )
  attention = trainer.init_state().params['layer_0']['attn']['q_einsum']
  codes, scales = (np.asarray(attention['w'][k]) for k in ('codes', 'scales'))
  dense = codes.astype(np.float32) * np.repeat(
      scales.astype(np.float32), 2, axis=1
  )
  np.testing.assert_allclose(
      attention['lora']['q']['m'], np.linalg.norm(dense, axis=1), rtol=1e-5
  )
