"""Attention by JAX's kernel, interpreted, against attention in blocks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from kauldron import kd
from kauldron import konfig
import numpy as np
import pytest

from gemma4_lora import g4
from gemma4_lora.host import _placement
from gemma4_lora.nn.attention import _blockwise
from gemma4_lora.nn.attention import _splash
from gemma4_lora.tpu import _mesh
from tests.lib import plan_configs
from tests.lib import steps

_BATCH, _LENGTH, _WIDTH = 2, 300, 128
_P = jax.sharding.PartitionSpec


def _arrays(dtype=jnp.float32, batch=_BATCH):
  """Queries of four heads, keys and values of two, and a cotangent."""
  rng = np.random.default_rng(0)
  q, k, v, cotangent = (
      jnp.asarray(rng.normal(size=(batch, _LENGTH, heads, _WIDTH)), dtype)
      for heads in (4, 2, 2, 4)
  )
  return q * _WIDTH**-0.5, k, v, cotangent


def _padded():
  """A row with padding at its end, and one with padding at its start."""
  valid = np.ones((_BATCH, _LENGTH), bool)
  valid[0, 210:] = False
  valid[1, :70] = False
  return valid


def _allowed(valid):
  """Positions as gemma counts them: they stand still at padding."""
  positions = np.maximum(np.cumsum(valid, axis=1) - 1, 0)
  return _blockwise.Allowed(
      positions=jnp.asarray(positions), valid=jnp.asarray(valid)
  )


def _packed():
  """Two conversations in a row, and padding, each token on its own."""
  positions = np.concatenate([np.arange(130), np.arange(150), np.zeros(20)])
  positions = jnp.asarray([positions] * _BATCH, jnp.int32)
  return _blockwise.Allowed(
      positions=positions,
      valid=jnp.asarray([np.arange(_LENGTH) < 280] * _BATCH),
      segments=jnp.cumsum(positions == 0, axis=-1),
  )


@functools.partial(jax.jit, static_argnums=0)
def _run(settings, q, k, v, cotangent, allowed):
  """What tokens attend to, and the gradients of it."""
  is_splash = isinstance(settings, _splash.Settings)
  attend = _splash._attend if is_splash else _blockwise.attend
  live = allowed.valid[..., None, None]
  output, pullback = jax.vjp(
      lambda *qkv: attend(settings, *qkv, allowed), q, k, v
  )
  return output * live, *pullback(cotangent * live)


def _errors(allowed, *, window=None, soft_cap=None, dtype=jnp.float32):
  """Norms of the differences to attention in blocks, of what it gives."""
  blockwise = _blockwise.Settings(window=window, soft_cap=soft_cap, block=128)
  splash = _splash.Settings(blockwise=blockwise, interpret=True)
  got, wanted = (
      _run(settings, *_arrays(dtype), allowed)
      for settings in (splash, blockwise)
  )
  return [
      np.linalg.norm(np.float32(x - y)) / np.linalg.norm(np.float32(y))
      for x, y in zip(got, wanted, strict=True)
  ]


@pytest.mark.parametrize(('window', 'soft_cap'), [(None, None), (100, 0.5)])
def test_padding_at_either_end(window, soft_cap):
  allowed = _allowed(_padded())
  assert _splash._is_dense(allowed)
  errors = _errors(allowed, window=window, soft_cap=soft_cap)
  assert max(errors) < 1e-6


@pytest.mark.parametrize('window', [None, 100])
def test_packed_rows(window):
  assert _splash._is_dense(_packed())
  assert max(_errors(_packed(), window=window)) < 1e-6


def test_bfloat16():
  """Both round scores' weights to bfloat16, at other places."""
  errors = _errors(_allowed(_padded()), window=100, dtype=jnp.bfloat16)
  assert 0 < max(errors) < 1e-2


@pytest.mark.parametrize('of_segments', [False, True])
def test_padding_between_tokens(of_segments):
  """The window is one of positions then, which the kernel does not know."""
  allowed = _packed() if of_segments else _allowed(_padded())
  valid = np.array(allowed.valid)
  valid[1, 100:120] = False
  positions = np.array(allowed.positions)
  positions[1, 120:130] -= 20
  if not of_segments:
    positions = _allowed(valid).positions
  allowed = dataclasses.replace(
      allowed, positions=jnp.asarray(positions), valid=jnp.asarray(valid)
  )
  assert not _splash._is_dense(allowed)
  soft_cap = None if of_segments else 0.5  # As above: programs are shared.
  assert max(_errors(allowed, window=100, soft_cap=soft_cap)) < 1e-6


def test_who_attends_to_nothing():
  """Behind padding at the start, and further from a token than the window."""
  valid = _padded()
  settings = _blockwise.Settings(window=20, soft_cap=None, block=128)
  q, k, v, _ = _arrays()
  output = _splash._attend(
      _splash.Settings(blockwise=settings, interpret=True),
      q,
      k,
      v,
      _allowed(valid),
  )
  is_zero = np.asarray(output == 0).all((2, 3))
  place = np.arange(_LENGTH)
  np.testing.assert_array_equal(is_zero[0], place >= 209 + 20)
  np.testing.assert_array_equal(is_zero[1], place < 70)


def test_each_device_has_its_examples():
  """The kernel in a step over eight devices, its batch divided among them."""
  mesh = kd.sharding.DEVICES_MESH
  batch = jax.sharding.NamedSharding(mesh, _P('devices'))
  settings = _blockwise.Settings(window=100, soft_cap=None)
  q, k, v, _ = _arrays(batch=16)
  allowed = _allowed(np.ones((16, _LENGTH), bool))
  with _placement.within(_placement.Placement(batch=batch, gathered={})):
    got = jax.jit(_splash.attend, static_argnums=0)(settings, q, k, v, allowed)
  assert got.sharding.is_equivalent_to(batch, got.ndim)
  np.testing.assert_allclose(
      got, _blockwise.attend(settings, q, k, v, allowed), atol=1e-5
  )


def test_rows_that_are_not_divided(caplog):
  """Fewer than devices, or outside of a step: the same numbers, and a line."""
  batch = jax.sharding.NamedSharding(kd.sharding.DEVICES_MESH, _P('devices'))
  placement = _placement.Placement(batch=batch, gathered={})
  settings = _blockwise.Settings(window=100, soft_cap=None)
  for num_rows, where in ((2, placement), (16, None)):
    q, k, v, _ = _arrays(batch=num_rows)
    allowed = _allowed(np.ones((num_rows, _LENGTH), bool))
    with _placement.within(where):
      got = _splash.attend(settings, q, k, v, allowed)
    wanted = _blockwise.attend(settings, q, k, v, allowed)
    np.testing.assert_allclose(got, wanted, atol=1e-5)
  assert caplog.text.count('and 2 rows are not divided here') == 1  # Once.


def test_the_key_tells_devices_apart():
  """What was traced for some devices is not taken for others."""
  batch = jax.sharding.NamedSharding(kd.sharding.DEVICES_MESH, _P('devices'))
  placement = _placement.Placement(batch=batch, gathered={})
  keys = {_splash.key()}
  with _placement.within(placement):
    keys.add(_splash.key())
  with _mesh.on_devices(jax.devices()[:1]):
    keys.add(_splash.key())
  assert len(keys) == 3


def test_elsewhere_than_on_a_tpu():
  """Through the model, whose layers run as in a loop: as in blocks."""
  saving = dict(remat='attention', attention='blockwise')
  model, params, wanted = steps.thin(**saving)
  splash = model.clone(attention='splash', scan_layers=True)
  steps.assert_same_step(steps.step(splash, params), wanted, rtol=1e-5)


def _plan(topology):
  """Of two layers whose heads are as wide as the kernel needs."""
  # pylint: disable=g-import-not-at-top
  with konfig.imports():
    from kauldron import kd as kd_

    from gemma4_lora import g4 as g4_
    from tests.lib import models
  # pylint: enable=g-import-not-at-top

  cfg = plan_configs.config(
      sharding=kd_.sharding.ShardingStrategy(
          params=kd_.sharding.FSDPSharding()
      ),
      trainstep=g4_.train.TrainStep(),
  )
  cfg.model.model = models.wide_heads(cfg.model.model)
  cfg.model.attention = 'splash'
  cfg.model.remat = 'attention'
  return g4.tpu.plan(cfg, topology=topology, batch=8, length=256, cache=None)


def test_the_compiler_for_tpus_takes_it():
  """The forward pass, and two kernels beside it in the backward pass."""
  pytest.importorskip('libtpu')
  plan = _plan('v6e:2x2')
  assert plan.cost.kernels == 2 * 4
  assert '8 calls of TPU kernels' in str(plan)
  assert plan.cost.unknown_loops == 0  # Those of attention in blocks.
  assert plan.cost.flops < plan.cost.flops_once
