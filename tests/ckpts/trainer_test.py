"""Restoring where it happens: in Kauldron's Trainer, before the optimizer."""

from gemma import gm
import jax
from kauldron import kd
import numpy as np

from gemma4_lora import _trees
from gemma4_lora import g4
from tests.lib import models
from tests.lib import random_params
from tests.lib import states
from tests.lib import training


def test_init_state_under_fsdp(tmp_path):
  """`init_state` of a sharded run has the file's values in the run's shards."""
  base = models.base('Gemma4_E2B', cut=models.one_layer)
  params = g4.testing.make_checkpoint(base, tmp_path / 'released')
  transform = g4.ckpts.SkipLoRA4(
      wrapped=gm.ckpts.LoadCheckpoint(path=tmp_path / 'released')
  )
  trainer = training.make_trainer(
      g4.nn.LoRA(rank=4, model=base),
      tmp_path / 'run',
      num_train_steps=1,
      init_transform=transform,
      sharding=kd.sharding.ShardingStrategy(
          params=kd.sharding.FSDPSharding(min_size_to_shard_mb=0)
      ),
      trainstep=kd.train.TrainStep(),
  )
  plain = trainer.init_state(skip_transforms=True)
  state = trainer.init_state()

  assert jax.tree.structure(state) == jax.tree.structure(plain)
  # Kauldron spells P('devices') as P('devices', None) after a transform.
  for got, want in zip(
      jax.tree.leaves(state), jax.tree.leaves(plain), strict=True
  ):
    assert (got.shape, got.dtype) == (want.shape, want.dtype)
    assert got.sharding.is_equivalent_to(want.sharding, got.ndim)
  assert not states.differing(state.params, params)
  q = state.params['layer_0']['attn']['q_einsum']['w']
  assert not q.sharding.is_fully_replicated
  # Seeds are those of the run: the same LoRA leaves with and without restore.
  lora = states.lora_leaves(plain)
  assert lora
  for key, leaf in states.lora_leaves(state).items():
    np.testing.assert_array_equal(leaf, lora[key])
  # The optimizer follows LoRA alone.
  moments = _trees.flatten(state.opt_state)
  assert all(_trees.is_lora(k) for k, v in moments.items() if v.ndim)


def test_run_of_another_model_as_source(tmp_path):
  """From a run's workdir to another run: saved by the Trainer, with timer."""
  base = models.base(cut=models.one_layer)
  params = g4.testing.make_checkpoint(base, tmp_path / 'released')
  run = training.make_trainer(
      g4.nn.LoRA(rank=2, targets='q', model=base),
      tmp_path / 'run',
      num_train_steps=10,
      init_transform=g4.ckpts.SkipLoRA4(
          wrapped=g4.ckpts.PartialLoad(path=tmp_path / 'released')
      ),
  )
  run.train()
  state = states.wrap(
      jax.tree.map(
          jax.numpy.zeros_like,
          random_params.make(g4.nn.LoRA(rank=8, targets='q', model=base)),
      )
  )
  out = g4.ckpts.SkipLoRA4(
      wrapped=kd.ckpts.PartialKauldronLoader(workdir=tmp_path / 'run')
  ).transform(state)
  assert not states.differing(out.params, params)
