"""Plans are what the compiler says of the step that a Trainer runs."""

import dataclasses

from gemma import peft
import jax
import jax.numpy as jnp
from kauldron import kd
from kauldron import konfig
import numpy as np
import pytest

from gemma4_lora import g4
from gemma4_lora.tpu import _batch
from gemma4_lora.tpu import _mesh
from gemma4_lora.tpu import _shapes
from gemma4_lora.tpu import _topology
from tests.lib import caches
from tests.lib import models
from tests.lib import plan_configs
from tests.lib import random_params
from tests.lib import training

# jax keeps no programs for chips that are not here. Plans have the hash of the
# package in their names: a change of it compiles anew.
_PLANS = caches.folder() / 'plans'


def _bytes_on_first_device(tree):
  """Of real arrays."""
  device = jax.devices()[0]
  return sum(
      shard.data.nbytes
      for x in jax.tree.leaves(tree)
      for shard in x.addressable_shards
      if shard.device == device
  )


def _compiled_by_hand(trainer, state, batch):
  return trainer.trainstep.step.lower(trainer.trainstep, state, batch).compile()


def _real_state(trainer):
  """As `trainer.init_state()`, without the minute that compiling `init` takes."""
  params = kd.sharding.with_sharding_constraint(
      random_params.make(trainer.model), trainer.sharding.params
  )
  state = kd.train.TrainState(
      step=jax.device_put(np.int32(0), kd.sharding.REPLICATED),
      params=params,
      collections={},
      opt_state=None,
  )
  return trainer.trainstep._init_optimizer(state)


@pytest.fixture(scope='module', name='sharded')
def _sharded():
  """A real training on 8 devices with FSDP, and the plan of its config."""
  with konfig.imports():
    from kauldron import kd as kd_

  cfg = plan_configs.config(
      cut='one_layer',
      sharding=kd_.sharding.ShardingStrategy(
          params=kd_.sharding.FSDPSharding(min_size_to_shard_mb=0)
      ),
  )
  trainer = konfig.resolve(cfg)
  state = _real_state(trainer)
  batch = next(iter(trainer.train_ds))
  batch = kd.sharding.device_put(batch, trainer.sharding.batch)
  return trainer, state, batch, g4.tpu.plan(cfg, topology='cpu', cache=None)


def test_bytes_of_the_state_are_those_of_a_real_one(sharded):
  _, state, batch, plan = sharded
  flat = training.flat(state.params)
  weights = {k: v for k, v in flat.items() if '.lora.' not in k}
  lora = {k: v for k, v in flat.items() if '.lora.' in k}
  assert plan.num_devices == 8
  assert plan.argument_bytes['weights'] == _bytes_on_first_device(weights)
  assert plan.argument_bytes['lora'] == _bytes_on_first_device(lora)
  assert plan.argument_bytes['optimizer'] == _bytes_on_first_device(
      state.opt_state
  )
  assert plan.argument_bytes['batch'] == _bytes_on_first_device(batch)
  # They are sharded in earnest.
  whole = sum(x.nbytes for x in weights.values())
  assert whole / 8 <= plan.argument_bytes['weights'] < whole / 4


def test_the_compiler_says_the_same_of_the_real_step(sharded):
  trainer, state, batch, plan = sharded
  compiled = _compiled_by_hand(trainer, state, batch)
  stats, cost = compiled.memory_analysis(), compiled.cost_analysis()
  assert plan.memory.arguments == stats.argument_size_in_bytes
  assert plan.memory.temporaries == stats.temp_size_in_bytes
  assert plan.memory.outputs == (
      stats.output_size_in_bytes - stats.alias_size_in_bytes
  )
  assert plan.cost.flops_once == cost['flops']
  assert plan.cost.bytes_once == cost['bytes accessed']
  assert plan.cost.flops >= plan.cost.flops_once
  assert plan.fits
  assert {x.kind for x in plan.collectives} >= {'all-gather', 'all-reduce'}


def test_a_trainer_made_by_hand(sharded):
  """Without a config; and its own shardings stay as they are."""
  _, _, _, plan = sharded
  trainer = training.make_trainer(
      g4.nn.LoRA(rank=4, model=models.base(cut=models.one_layer)),
      '/nowhere',
      num_train_steps=1,
      sharding=kd.sharding.ShardingStrategy(
          params=kd.sharding.FSDPSharding(min_size_to_shard_mb=0)
      ),
  )
  before = kd.sharding.DEVICES_MESH
  made = g4.tpu.plan(trainer, topology='cpu:4', batch=16)
  assert kd.sharding.DEVICES_MESH == before
  assert trainer.sharding.batch.mesh == before
  assert jax.device_count() == 8
  assert (made.num_devices, made.batch, made.length) == (4, 16, 12)
  assert made.argument_bytes['batch'] == 2 * 2 * plan.argument_bytes['batch']
  assert made.argument_bytes['weights'] > plan.argument_bytes['weights']


def test_mesh_is_as_before_after_an_error():
  before = kd.sharding.FIRST_DIM
  with pytest.raises(RuntimeError, match='midway'):
    with _mesh.on_devices(jax.devices()[:2]):
      assert kd.sharding.FIRST_DIM.mesh.size == 2
      assert jax.device_count() == 2
      raise RuntimeError('midway')
  assert kd.sharding.FIRST_DIM is before
  assert jax.device_count() == 8


def test_a_plan_survives_json(sharded):
  *_, plan = sharded
  assert g4.tpu.Plan.from_json(plan.to_json()) == plan


def test_a_tpu_from_any_machine():
  """Against the same step, lowered here by hand for the same chip."""
  pytest.importorskip('libtpu')
  from jax.experimental import topologies  # pylint: disable=g-import-not-at-top

  cfg = plan_configs.config('Gemma4_E2B', cut='one_layer')
  plan = g4.tpu.plan(cfg, topology='v6e:1x1', batch=2, length=24, cache=_PLANS)
  assert plan.fits
  assert plan.chip.name == 'v6e'

  devices = topologies.get_topology_desc(
      platform='tpu', topology_name='v6e:1x1'
  ).devices
  mesh = jax.sharding.Mesh(np.asarray(devices), ('devices',))
  replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  trainer = konfig.resolve(cfg)
  _ = trainer.train_ds.element_spec  # Read before anything is traced.
  first = jax.sharding.NamedSharding(
      mesh, jax.sharding.PartitionSpec('devices')
  )
  sharding = kd.sharding.ShardingStrategy(
      batch=first, params=replicated, aux=replicated
  )
  step = dataclasses.replace(trainer.trainstep, sharding=sharding)

  def struct(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated)

  state = jax.eval_shape(lambda: trainer.init_state(skip_transforms=True))
  tokens = jax.ShapeDtypeStruct((2, 24), np.int32, sharding=first)
  target = jax.ShapeDtypeStruct((2, 24, 1), np.int32, sharding=first)
  with _replicated(replicated):
    compiled = step.step.lower(
        step,
        jax.tree.map(struct, state),
        {'input': tokens, 'target': target},
    ).compile()
  stats = compiled.memory_analysis()
  assert plan.memory.arguments == stats.argument_size_in_bytes
  assert plan.memory.temporaries == stats.temp_size_in_bytes
  assert plan.cost.flops_once == compiled.cost_analysis()['flops']
  assert plan.padding_bytes > 0
  assert plan.step_seconds == max(plan.seconds_by_bound.values()) > 0
  assert plan.tokens_per_second == 2 * 24 / plan.step_seconds


class _replicated:  # pylint: disable=invalid-name
  """Kauldron's constant for the step counter, by hand."""

  def __init__(self, sharding):
    self.sharding = sharding

  def __enter__(self):
    self.before = kd.sharding.REPLICATED
    vars(kd.sharding)['REPLICATED'] = self.sharding

  def __exit__(self, *_):
    vars(kd.sharding)['REPLICATED'] = self.before


def test_codes_of_4_bits_are_two_in_a_byte():
  """By hand, and as the compiler counts arguments."""
  with konfig.imports():
    from gemma4_lora import g4 as g4_  # pylint: disable=g-import-not-at-top

  cfg = plan_configs.config(cut='one_layer')
  cfg.model.quantize = g4_.quant.Int4(group_size=2)
  with _mesh.on_devices(_topology.topology('cpu:1').devices):
    trainer = konfig.resolve(cfg)
    shapes = _shapes.shapes_of(trainer, _batch.batch_of(trainer))
    base = peft.split_params(shapes.state.params).original
    compiled = (
        jax.jit(lambda x: jax.tree.map(jnp.copy, x)).lower(base).compile()
    )
  flat = training.flat(base)
  codes = {k: x for k, x in flat.items() if k.endswith('.codes')}
  rest = sum(x.size * x.dtype.itemsize for x in flat.values())
  rest -= sum(x.size for x in codes.values())
  assert {str(x.dtype) for x in codes.values()} == {'int4'}
  want = rest + sum(x.size // 2 for x in codes.values())
  assert shapes.bytes_per_device()['weights'] == want
  assert compiled.memory_analysis().argument_size_in_bytes == want


def test_a_step_that_does_not_fit():
  """By the compiler's own word, with what to change."""
  pytest.importorskip('libtpu')
  plan = g4.tpu.plan(
      plan_configs.config(cut='one_layer'),
      topology='v6e:1x1',
      batch=2**13,
      length=512,
      cache=_PLANS,
  )
  assert not plan.fits
  assert plan.memory is None
  assert plan.cost is None
  assert plan.too_large.wanted > plan.too_large.available > 31 * 2**30
  assert plan.hbm_bytes == plan.too_large.available
  assert plan.peak_bytes == plan.too_large.wanted
  advice = '\n'.join(plan.advice)
  for word in ('batch: ', 'length: ', 'remat: ', 'loss: ', 'chips: ', 'int4'):
    assert word in advice
  assert 'does not fit' in str(plan)


@pytest.mark.parametrize(
    ('cfg', 'message'),
    [
        ({'model': 1}, 'takes a konfig.ConfigDict or a kd.train.Trainer'),
        (konfig.ConfigDict({'model': 1}), 'of a kd.train.Trainer. This one is'),
    ],
)
def test_what_is_no_config(cfg, message):
  with pytest.raises(g4.tpu.PlanError, match=message):
    g4.tpu.plan(cfg, topology='cpu')


def test_a_batch_that_cannot_be_split():
  with pytest.raises(
      g4.tpu.PlanError, match='batch of 9 .* over 8 devices .* multiple of 8'
  ):
    g4.tpu.plan(plan_configs.config(), topology='cpu', batch=9, cache=None)
