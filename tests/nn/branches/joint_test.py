"""Base and branches as one product give what they give one by one."""

import dataclasses
import functools

from gemma import gm
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4_lora import g4
from gemma4_lora import quant
from gemma4_lora.gemma4 import _linears
from gemma4_lora.nn.branches import _joint
from gemma4_lora.nn.branches import _low_rank
from gemma4_lora.quant import _format
from tests.lib import dequantized
from tests.lib import forward
from tests.lib import models
from tests.lib import random_params

_EQNS = {
    'q': 'BTD,NDH->BTNH',
    'k': 'BSD,CKDH->CBSKH',
    'v': 'BSD,CKDH->CBSKH',
    'o': 'BTNH,NHD->BTD',
    'gate': '...F,NHF->...NH',
    'up': '...F,NHF->...NH',
    'down': '...H,HF->...F',
}


@functools.cache
def _rows():
  """Projections of E2B's first layer, of small shapes."""
  config = g4.testing.Gemma4_E2B().config
  return {
      row.projection: row
      for row in _linears.linears(config)
      if row.layer == 0 and row.tower == 'text'
  }


def _draw(seed, *shape):
  return np.random.default_rng(seed).standard_normal(shape, np.float32)


def _weight_and_input(row):
  weight = _draw(0, *row.shape)
  return weight, _draw(1, 2, 5, *row.in_shape)


def _gradients(function, args):
  """Values, and the gradients of all arguments under a random cotangent."""

  @jax.jit
  def both(args):
    value, pull = jax.vjp(function, *args)
    return value, pull(_draw(9, *value.shape))

  return both(args)


def _assert_close(got, wanted):
  leaves = zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True)
  for x, y in leaves:
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ('names', 'is_quantized'),
    [
        (['q'], False),
        (['k', 'v'], False),
        (['v'], False),
        (['gate', 'up'], False),
        (['gate'], False),
        (['q'], True),
        (['v'], True),
        (['gate', 'up'], True),
    ],
)
def test_one_product(names, is_quantized):
  rows = [_rows()[name] for name in names]
  eqn = _EQNS[names[0]]
  weight, x = _weight_and_input(rows[0])
  pairs = [
      (_draw(2, *row.in_shape, 3), _draw(3, 3, *row.out_shape)) for row in rows
  ]

  def joint(x, weight, pairs):
    branches = [
        (row, 0.5 * _low_rank.apply_a(eqn, row, x, a), b)
        for row, (a, b) in zip(rows, pairs, strict=True)
    ]
    return _joint.apply(eqn, x, weight, branches, jnp.float32)

  def merged(x, weight, pairs):
    for row, (a, b) in zip(rows, pairs, strict=True):
      (axis,) = row.in_axes
      weight = jnp.asarray(weight)
      # [in, *out], the axis of the input put back where the weight has it.
      delta = 0.5 * jnp.tensordot(a, b, 1)
      if row.slot_axis is None:
        weight += jnp.moveaxis(delta, 0, axis)
      else:
        at = (slice(None),) * row.slot_axis + (row.slot,)
        weight = weight.at[at].add(
            jnp.moveaxis(delta, 0, axis - (axis > row.slot_axis))
        )
    return jnp.einsum(eqn, x, weight)

  if not is_quantized:
    args = (x, weight, pairs)
    _assert_close(_gradients(joint, args), _gradients(merged, args))
    return
  block = [1] * weight.ndim
  block[rows[0].in_axes[0]] = 16
  encoding = _format.Encoding(
      format=quant.Int4, block=tuple(block), scale_dtype=jnp.float32
  )
  value = quant.quantize(weight, encoding)
  dense = jnp.asarray(dequantized.array(value))
  _assert_close(
      _gradients(lambda x, pairs: joint(x, value, pairs), (x, pairs)),
      _gradients(lambda x, pairs: merged(x, dense, pairs), (x, pairs)),
  )


@pytest.mark.parametrize(
    'name, tokens, pays',
    [
        ('gate', 1024, False),  # The weight's copy costs more.
        ('gate', 2048, True),
        ('q', 4096, False),
        ('q', 8192, True),
        ('k', 2**20, False),  # Narrower than its input.
        ('o', 2**20, False),
        ('down', 2**20, False),
    ],
)
def test_where_it_pays(name, tokens, pays):
  """E2B's first layer: 1536 wide, 6144 in the MLP, 8 heads of 256."""
  rows = _linears.linears(gm.nn.Gemma4_E2B().config)
  (row,) = [row for row in rows if row.layer == 0 and row.projection == name]
  x = jax.ShapeDtypeStruct((tokens, *row.in_shape), jnp.bfloat16)
  assert _joint.pays(_EQNS[name], row, x) == pays


def test_logits_are_those_of_fused_weights():
  """With tokens enough that gate and up are joined."""
  base = models.base('Gemma4_E2B', cut=models.one_layer, dtype=jnp.float32)
  config = dataclasses.replace(base.config, hidden_dim=256)
  model = g4.nn.LoRA(rank=2, model=base.clone(config=config))
  params = random_params.make(model)
  tokens = jnp.asarray(
      np.random.default_rng(0).integers(3, 1000, (2, 128)), jnp.int32
  )

  @functools.partial(jax.jit, static_argnums=1)
  def apply(params, is_training):
    return model.apply(
        {'params': params}, tokens, is_training_property=is_training
    ).logits

  joined = f'tensor<2x256x{config.embed_dim + 2 * model.rank}xf32>'
  assert joined in apply.lower(params, True).as_text()
  # Elsewhere LoRA with B = 0 is the base to the last bit.
  assert joined not in apply.lower(params, False).as_text()
  fused = g4.nn.fuse_params(model, params)
  wanted = forward.logits(model.model, fused, tokens)
  np.testing.assert_allclose(apply(params, True), wanted, atol=2e-4)
  np.testing.assert_allclose(apply(params, False), wanted, atol=2e-4)
