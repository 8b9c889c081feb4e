"""Layers in a loop compute what layers in a row do."""

import functools

from gemma import peft
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.lib import models
from tests.lib import programs
from tests.lib import random_params
from tests.lib import steps


@functools.cache
def _model(name, pattern, **kwargs):
  """A model in float32 of a pattern of local (L) and global (G) layers."""
  is_global = tuple(letter == 'G' for letter in pattern)
  cut = functools.partial(models.with_layers, is_global=is_global)
  return models.lora(name, cut=cut, rank=2, **kwargs)


_CASES = {
    # Two loops of equal layers, but that the second read what the first left.
    'shared': ('Gemma4_E4B', 'LGLGLGLG', dict(targets=('q', 'down')), {}),
    # A loop in a loop, and what is trained in full.
    'nested': (
        'Gemma4_31B',
        'LLGLLG',
        dict(targets=('k', 'up'), modules_to_save=('norms',)),
        dict(remat='attention', attention='blockwise'),
    ),
    'experts': (
        'Gemma4_26B_A4B',
        'LL',
        dict(targets=('q', 'expert_down')),
        dict(remat='dots'),
    ),
}


@pytest.mark.parametrize('case', _CASES)
def test_same_step(case):
  name, pattern, kwargs, saving = _CASES[case]
  model = _model(name, pattern, **kwargs)
  params = random_params.make(model)
  with jax.enable_x64(True):  # In float32 these models round to 6e-5.
    params = jax.tree.map(lambda x: x.astype(jnp.float64), params)
    wanted = steps.step(model, params)
    got = steps.step(model.clone(scan_layers=True, **saving), params)
  live = steps.tokens() > 0
  np.testing.assert_allclose(
      got[1].logits[live], wanted[1].logits[live], atol=1e-6
  )
  steps.assert_same_step(got, wanted, rtol=1e-6)


def test_same_dora():
  """Its norms are float32 in any model, so that this bound is wider."""
  model = _model('Gemma4_31B', 'LL', targets=('q', 'down'), use_dora=True)
  params = random_params.make(model)
  wanted = steps.step(model, params)
  got = steps.step(model.clone(scan_layers=True), params)
  live = steps.tokens() > 0
  np.testing.assert_allclose(
      got[1].logits[live], wanted[1].logits[live], atol=1e-4
  )
  steps.assert_same_step(got, wanted, rtol=1e-4)


def _gradient(model):
  """The program of a gradient."""
  tokens = jnp.ones((1, 4), int)
  params = jax.eval_shape(model.init, jax.random.key(0), tokens)['params']
  base, lora = peft.split_params(params)

  def loss(lora, base):
    merged = {'params': peft.merge_params(base, lora)}
    return model.apply(merged, tokens).logits.sum()

  return jax.make_jaxpr(jax.grad(loss))(lora, base).jaxpr


def _num_products(model):
  equations = programs.steps(_gradient(model))
  return sum(x.primitive.name == 'dot_general' for x in equations)


@pytest.mark.parametrize('remat', ['none', 'block'])
def test_depth_is_free(remat):
  """The program of twice the layers has no more products."""
  patterns = ['LLGLLG', 'LLG' * 4]
  once, twice = (
      _num_products(_model('Gemma4_31B', x, scan_layers=True, remat=remat))
      for x in patterns
  )
  assert once == twice
  if remat == 'none':  # In a row they do have more: the count means something.
    assert once < _num_products(_model('Gemma4_31B', patterns[0]))


@pytest.mark.parametrize('remat', ['none', 'block'])
def test_weights_are_not_stacked(remat):
  """Neither the loop's input nor what it keeps for the backward pass."""
  model = _model('Gemma4_31B', 'LLLL', scan_layers=True, remat=remat)
  config = model.config
  arrays = programs.arrays(_gradient(model))
  dims = {tuple(sorted(x.shape)) for x in arrays}
  weight = (config.hidden_dim, config.embed_dim)
  assert tuple(sorted(weight)) in dims
  for stacked in ((4, *weight), (4, 2, *weight)):
    assert tuple(sorted(stacked)) not in dims


def test_dropout_in_training_alone():
  model = _model('Gemma4_31B', 'LL', dropout=0.5, targets=('q',))
  model = model.clone(scan_layers=True)
  params = {'params': random_params.make(model)}

  def logits(seed, **kwargs):
    rngs = {'dropout': jax.random.key(seed)}
    return model.apply(params, steps.tokens(), rngs=rngs, **kwargs).logits

  trained = jax.jit(functools.partial(logits, is_training_property=True))
  np.testing.assert_array_equal(trained(0), trained(0))
  assert not np.allclose(trained(0), trained(1), atol=1e-3)
  assert 'random_bits' not in str(jax.make_jaxpr(logits)(0))


def test_samplers_take_gemma_s_own_layers():
  """With a cache: the logits of the next token are those of the whole row."""
  model = _model('Gemma4_31B', 'LL', scan_layers=True)
  params = {'params': random_params.make(model)}
  tokens = steps.tokens()[:1, :6]
  cache = model.init_cache(batch_size=1, dtype=jnp.float32, cache_length=8)
  mask = np.zeros((1, 6, 8), bool)
  mask[:, :, :6] = np.tri(6, dtype=bool)
  cached = model.apply(
      params,
      tokens,
      cache=cache,
      positions=jnp.arange(6)[None],
      attention_mask=mask,
  )
  np.testing.assert_allclose(
      cached.logits, model.apply(params, tokens).logits, atol=5e-5
  )
