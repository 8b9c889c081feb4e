"""LoftQ: what A and B make up for is what quantising the base lost."""

import functools

from gemma import peft
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4_lora import g4
from gemma4_lora.nn.branches import _pending
from gemma4_lora.nn.branches import _quantized_base
from gemma4_lora.nn.from_base import _loftq
from tests.lib import forward
from tests.lib import models
from tests.lib import random_params
from tests.lib import training

_TOKENS = np.random.default_rng(0).integers(3, 1000, (2, 6))


def _model(name='Gemma4_26B_A4B', **kwargs):
  settings = {
      'rank': 3,
      'alpha': 6,
      'targets': ['text', 'experts'],
      'quantize': g4.quant.NF4(group_size=2),
      'init_lora_weights': 'loftq',
  }
  return models.lora(name, **settings | kwargs)


def _set(model):
  """Parameters before they are quantised, and with A and B set."""
  plain = model.clone(quantize=None, init_lora_weights='default')
  params = random_params.make(plain)
  quantized = _quantized_base.quantize(params, model.quantized)
  loftq = _loftq.LoftQ(model)
  flat = training.flat(params)
  for path, encoding in model.quantized.items():
    loftq.add(path, flat[path], g4.quant.quantize(flat[path], encoding))
  return params, loftq.set(quantized)


def _matrix(value, row):
  """`float64[in, out]`, of one projection and one expert."""
  value = np.asarray(value, np.float64)
  in_axes, out_axes = list(row.in_axes), list(row.out_axes)
  index = [slice(None)] * value.ndim
  if row.slot_axis is not None:
    index[row.slot_axis] = row.slot
  for axis in row.batch_axes:
    index[axis] = 1
  kept = [a for a, i in enumerate(index) if isinstance(i, slice)]
  value = value[tuple(index)]
  order = [kept.index(axis) for axis in (*in_axes, *out_axes)]
  size = np.prod([row.shape[axis] for axis in in_axes])
  return value.transpose(order).reshape(size, -1)


@pytest.mark.parametrize('init', ['loftq', 'loftq_niter_64'])
def test_nearest_to_what_was_lost(init):
  """By NumPy's SVD; of k, of one that stands alone, and of an expert."""
  rule = g4.targets.Rule(['k', 'o', 'expert_up'], layers=0)
  quantize = g4.quant.NF4(['attention', 'experts'], group_size=2)
  model = _model(targets=[rule], quantize=quantize, init_lora_weights=init)
  before, after = _set(model)
  for linear in model.adapted:
    row = linear.row
    lost = _matrix(_get(before, row.path), row) - _matrix(
        g4.quant.dequantize(_get(after, row.path), jnp.float32), row
    )
    u, s, vh = np.linalg.svd(lost, full_matrices=False)
    want = (u[:, :3] * s[:3]) @ vh[:3]
    lora = _get(after, row.lora_path)
    a, b = np.asarray(lora['a']), np.asarray(lora['b'])
    if row.batch_axes:
      a, b = a[1], b[1]
    got = 2 * a.reshape(-1, 3) @ b.reshape(3, -1)
    distance = np.linalg.norm(lost - got)
    np.testing.assert_allclose(distance, np.linalg.norm(lost - want), rtol=1e-3)
    assert distance < 0.97 * np.linalg.norm(lost)


def _get(params, path):
  for key in path.split('.'):
    params = params[key]
  return params


def test_first_step_is_nearer_to_the_released_model():
  parts = ['q', 'o', 'mlp']
  quantize = g4.quant.NF4(parts, group_size=16)
  model = _model(
      'Gemma4_E2B',
      cut=models.one_layer,
      targets=parts,
      quantize=quantize,
      rank=12,
  )
  before, after = _set(model)
  logits = functools.partial(forward.logits, tokens=_TOKENS)
  released = logits(model.model, peft.split_params(before).original)
  start = logits(model, after)
  without = dict(training.flat(after))
  for path, x in without.items():
    if path.endswith('.b'):
      without[path] = jnp.zeros_like(x)
  treedef = jax.tree.structure(after)
  base = logits(model, jax.tree.unflatten(treedef, without.values()))
  assert np.linalg.norm(start - released) < 0.8 * np.linalg.norm(
      base - released
  )


def test_pending_until_the_base_is_restored():
  model = _model('Gemma4_31B', targets='q')
  model = model.clone(model=models.one_layer(model.model))
  tokens = jnp.ones((1, 3), jnp.int32)

  @jax.jit  # Compiles only what it returns.
  def init(key):
    params = model.init(key, tokens)['params']
    return {
        'layer_0': {'attn': {'q_einsum': params['layer_0']['attn']['q_einsum']}}
    }

  params = init(jax.random.key(0))
  assert _pending.is_pending(
      params['layer_0']['attn']['q_einsum']['lora']['q']['a']
  )
  with pytest.raises(
      ValueError, match=r"'loftq': layer_0.attn.q_einsum.w was quantised before"
  ):
    _loftq.LoftQ(model).set(params)


def test_needs_a_quantized_base():
  with pytest.raises(
      ValueError, match=r"'loftq' makes up for .* leaves \d+ of \d+ adapted"
  ):
    _model('Gemma4_31B', targets='text', quantize=g4.quant.Int8('attention'))
  with pytest.raises(ValueError, match="'pissa' changes it. Take 'loftq'"):
    _model('Gemma4_31B', targets='q', init_lora_weights='pissa')
