"""Under FSDP, what moves between devices is weights, one layer at a time."""

import dataclasses

import jax
from kauldron import kd
import numpy as np
import pytest

from gemma4_lora import g4
from gemma4_lora.host import _placement
from gemma4_lora.tpu import _batch
from gemma4_lora.tpu import _shapes
from gemma4_lora.tpu.program import _exchanges
from gemma4_lora.tpu.program import _hlo
from tests.lib import training

_P = jax.sharding.PartitionSpec
_BASE_MB = 0.0025  # LoRA leaves, and no others, are below.


def _lowered(remat='block', **sharding):
  """A step of four layers in a loop, and the bytes of the weights in it."""
  base = g4.testing.Gemma4_31B(tokens='batch.input')
  types = base.config.attention_types[:1] * 4
  config = dataclasses.replace(base.config, attention_types=types)
  trainer = training.make_trainer(
      g4.nn.LoRA(
          rank=2,
          targets=['q', 'mlp'],
          model=base.clone(config=config),
          logits_in_training=False,
          scan_layers=True,
          remat=remat,
      ),
      '/nowhere',
      num_train_steps=1,
      sharding=kd.sharding.ShardingStrategy(**sharding),
      train_losses={
          'xent': g4.losses.SoftmaxCrossEntropyWithIntLabels(
              head='preds.head', labels='batch.target'
          )
      },
  )
  shapes = _shapes.shapes_of(trainer, _batch.batch_of(trainer))
  lowered = trainer.trainstep.step.lower(
      trainer.trainstep, shapes.state, shapes.batch
  )
  layers = [shapes.state.params[f'layer_{i}'] for i in range(4)]
  return lowered, sum(
      x.size * x.dtype.itemsize
      for x in jax.tree.leaves(layers)
      if not x.sharding.is_fully_replicated
  )


def test_layers_exchange_weights_alone():
  lowered, weights = _lowered(
      params=kd.sharding.FSDPSharding(min_size_to_shard_mb=_BASE_MB)
  )
  program = _hlo.Program(lowered.compile().as_text())
  in_loops = {loop.body for loop in program.loops}
  found = {x.kind: x for x in _exchanges.collectives(program, 8)}
  # Sums are of gradients, and of what of a word's vector each device has.
  assert found.keys() == {'all-gather', 'all-reduce'}
  # In the forward pass and in the backward pass, in float32 on a CPU.
  assert in_loops
  assert found['all-gather'].bytes == pytest.approx(2 * 2 * weights, rel=0.1)


def test_no_weight_is_kept_together():
  """Where all else is kept for the backward pass."""
  params = kd.sharding.FSDPSharding(min_size_to_shard_mb=_BASE_MB)
  text = _lowered(remat='none', params=params)[0].as_text()
  assert 'tensor<2x56x40xbf16>' in text
  assert 'tensor<4x2x56x40xbf16>' not in text


def test_each_program_is_of_its_own_sharding():
  """Though shapes are the same: what is said, of inputs and of weights."""
  inputs, totals = [], []
  for sharding in (
      dict(params=kd.sharding.FSDPSharding(min_size_to_shard_mb=_BASE_MB)),
      dict(params=kd.sharding.REPLICATED),
      dict(params=kd.sharding.REPLICATED, batch=kd.sharding.REPLICATED),
  ):
    text = _lowered(**sharding)[0].as_text()
    inputs.append(text.count('[{"devices"}, {?}, {?}]>'))
    totals.append(text.count('sharding_constraint'))
  assert inputs[0] == inputs[1] > inputs[2] == 0
  assert totals[0] > totals[1] > totals[2]


@pytest.mark.parametrize(
    ('of_weight', 'gathered'),
    [
        (_P(None, 'data'), _P(None, None)),
        (_P('model', 'data'), _P('model', None)),
        (_P(('model', 'data')), _P(('model',))),
        (_P('model'), None),
        (_P(), None),
    ],
)
def test_weights_come_together_along_the_axes_of_the_batch(of_weight, gathered):
  mesh = jax.make_mesh((2, 4), ('data', 'model'))

  def placed(spec):
    return jax.sharding.NamedSharding(mesh, spec)

  placement = _placement.of_step(
      kd.sharding.ShardingStrategy(
          params=placed(of_weight), batch=placed(_P('data'))
      ),
      params={'layer_0': {'w': np.zeros((8, 8))}},
      batch={'input': np.zeros((4, 3))},
  )
  assert placement.batch == placed(_P('data'))
  assert placement.gathered == (
      {'layer_0.w': placed(gathered)} if gathered is not None else {}
  )


@pytest.mark.parametrize('spec', [_P(), _P(None, 'data'), None])
def test_a_batch_that_is_whole_says_nothing(spec):
  mesh = jax.make_mesh((8,), ('data',))
  placement = _placement.of_step(
      kd.sharding.ShardingStrategy(
          params=jax.sharding.NamedSharding(mesh, _P('data')),
          batch=None
          if spec is None
          else jax.sharding.NamedSharding(mesh, spec),
      ),
      params={'w': np.zeros((8, 8))},
      batch={'input': np.zeros((8, 8))},
  )
  assert placement is None
