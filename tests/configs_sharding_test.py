"""Configs for several chips: what stands where, and the same losses as on one."""

import dataclasses

import jax
import jax.numpy as jnp
from kauldron import kd
from kauldron import konfig
import numpy as np
import optax
import pytest

from gemma4_lora.gemma4 import _upstream
from tests.lib import shipped
from tests.lib import training

_MB = 2**20
_FSDP = [
    "gemma4_31b_lora_no_robots",
    "gemma4_26b_a4b_lora_no_robots",
    "experts",
]


def _trainer(run, tmp_path, *overrides):
  path, *args = shipped.RUNS[run]
  workdir = f"--cfg.workdir={tmp_path / 'run'}"
  cfg = shipped.by_flags(path, *args, *overrides, workdir)
  return konfig.resolve(cfg)


def _real_params(model):
  """Shapes of all parameters of the real model."""
  params = training.flat(_upstream.abstract_params(model.model))
  for path, shape in model.lora_shapes.items():
    params[path] = jax.ShapeDtypeStruct(shape, model.dtype)
  return params


def _bytes(shapes, shardings):
  """Bytes in all, and on one of the devices."""
  leaves = jax.tree.leaves(shapes), jax.tree.leaves(shardings)
  pairs = list(zip(*leaves, strict=True))
  return (
      sum(x.size * x.dtype.itemsize for x, _ in pairs),
      sum(
          np.prod(s.shard_shape(x.shape), dtype=int) * x.dtype.itemsize
          for x, s in pairs
      ),
  )


@pytest.mark.parametrize("run", _FSDP)
def test_what_stands_where(run, tmp_path):
  """Of the real model: an eighth of the base and of Adam's state, and LoRA."""
  trainer = _trainer(run, tmp_path)
  assert jax.device_count() == 8
  params = _real_params(trainer.model)
  placed = trainer.sharding.params(params)
  is_lora = {path: ".lora." in path for path in params}
  for path, x in params.items():
    if x.size * x.dtype.itemsize > 4 * _MB:
      assert not placed[path].is_fully_replicated, path
  base = {k: v for k, v in params.items() if not is_lora[k]}
  lora = {k: v for k, v in params.items() if is_lora[k]}
  total, per_device = _bytes(base, {k: placed[k] for k in base})
  assert total > 40e9
  assert per_device < 1.01 * total / 8
  # Small leaves on all devices, the larger ones of experts in parts.
  total, per_device = _bytes(lora, {k: placed[k] for k in lora})
  assert per_device < 0.6e9
  if run == "experts":
    assert per_device < total / 2
  optimizer = optax.adamw(1e-4)
  state = jax.eval_shape(optimizer.init, lora)
  of_state = trainer.sharding.opt_state(state)
  total, per_device = _bytes(state, of_state)
  assert per_device < 1.01 * total / 8


def test_the_losses_are_those_of_one_device(tmp_path):
  """FSDP and replicated, from the same weights and data."""
  losses = {}
  for name in ("fsdp", "replicated"):
    trainer = shipped.with_fewer_layers(
        _trainer(_FSDP[0], tmp_path / name, shipped.SHRINK),
        tmp_path,
        light=True,
        dtype=jnp.float32,
    )
    if name == "replicated":  # The batch too: each device does all.
      sharding = kd.sharding.ShardingStrategy(
          batch=kd.sharding.REPLICATED, params=kd.sharding.REPLICATED
      )
      trainer = dataclasses.replace(
          trainer,
          sharding=sharding,
          trainstep=dataclasses.replace(trainer.trainstep, sharding=sharding),
      )
    values = []
    trainer = dataclasses.replace(
        trainer,
        writer=shipped.writer_to(values),
        evals={},
        checkpointer=kd.ckpts.NoopCheckpointer(),
    )
    state, _ = trainer.train()
    leaves = training.flat(state.params)
    some = leaves["layer_0.attn.q_einsum.w"]
    assert some.sharding.is_fully_replicated == (name == "replicated")
    if name == "fsdp":
      for leaf in jax.tree.leaves(state.opt_state):
        assert leaf.ndim == 0 or not leaf.sharding.is_fully_replicated
    losses[name] = [float(x.loss_values["losses/total"]) for x in values]
  np.testing.assert_allclose(losses["fsdp"], losses["replicated"], rtol=1e-5)
  assert len(set(losses["fsdp"])) == 3
