"""DoRA: a magnitude per output feature."""

import functools

from gemma import peft
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4_lora import g4
from tests.lib import forward
from tests.lib import merged
from tests.lib import models
from tests.lib import random_params
from tests.lib import training

_TOKENS = jnp.asarray(np.random.default_rng(0).integers(3, 1000, (2, 12)))


_model = functools.partial(models.lora, rank=3, alpha=6, use_dora=True)


_of_one_layer = functools.partial(_model, cut=models.one_layer)


def _logits(model, params, **kwargs):
  return model.apply({'params': params}, _TOKENS, **kwargs).logits


def _set(params, path, value):
  *scope, last = path.split('.')
  for key in scope:
    params = params[key]
  params[last] = jnp.asarray(value, params[last].dtype)


def _start(model, params):
  """Sets B to zero and the magnitudes to the norms of the base."""
  norms = merged.norms(model, peft.split_params(params).original)
  for name, view in g4.nn.linears(model, params).items():
    path = view.row.lora_path
    _set(params, f'{path}.b', np.zeros_like(view.lora_b))
    _set(params, f'{path}.m', norms[name])


@pytest.mark.parametrize('name', ['Gemma4_E2B', 'Gemma4_26B_A4B'])
def test_equals_the_model_with_merged_weights(name):
  """Of every projection at once, B and magnitudes far from the start."""
  targets = ['text', 'router'] if name == 'Gemma4_26B_A4B' else ['text']
  model = _of_one_layer(name, targets=targets)
  params = random_params.make(model)
  fixed = g4.nn.RouterFix(model=model.model)
  want = forward.logits(fixed, merged.base(model, params), _TOKENS)
  original = peft.split_params(params).original
  without = forward.logits(fixed, original, _TOKENS)
  assert np.abs(want - without).max() > 1.0
  got = forward.logits(model, params, _TOKENS)
  np.testing.assert_allclose(got, want, atol=2e-3)


def test_step_0_is_the_base_model_bitwise():
  """In bfloat16; float32 shows the rounding of the norms."""
  model = _of_one_layer('Gemma4_E2B', base_dtype=jnp.bfloat16)
  params = random_params.make(model)
  _start(model, params)
  got = forward.logits(model, params, _TOKENS)
  original = peft.split_params(params).original
  want = forward.logits(model.model, original, _TOKENS)
  np.testing.assert_array_equal(got, want)


def test_init_sets_magnitudes_to_the_norms_of_its_own_base():
  model = _of_one_layer('Gemma4_31B', base_dtype=jnp.bfloat16)

  @jax.jit  # Compiles only what it returns.
  def init(key):
    params = model.init(key, _TOKENS)['params']
    return {'layer_0': params['layer_0']}

  params = init(jax.random.key(0))
  norms = merged.norms(model, peft.split_params(params).original)
  for name, view in g4.nn.linears(model, params).items():
    assert view.lora_m.dtype == jnp.float32
    np.testing.assert_allclose(
        view.lora_m, norms[name], rtol=1e-5, err_msg=name
    )


def test_gradients_are_those_of_the_formula_with_a_constant_norm():
  model = _of_one_layer('Gemma4_31B', targets=['q', 'k', 'o', 'up'])
  params = random_params.make(model)
  original, lora = peft.split_params(params)

  def mean(logits):
    return jnp.mean(jax.nn.log_softmax(logits)[..., 7])

  def ours(lora):
    return mean(_logits(model, peft.merge_params(original, lora)))

  sums = merged.base(model.clone(use_dora=False), params)
  norms = merged.norms(model, sums)

  def by_hand(lora):
    params = peft.merge_params(original, lora)
    base = merged.base(model, params, constants=norms)
    return mean(_logits(model.model, base))

  got = training.flat(jax.jit(jax.grad(ours))(lora))
  want = training.flat(jax.jit(jax.grad(by_hand))(lora))
  for path, grad in want.items():
    assert np.any(grad), path
    error = np.abs(got[path] - grad).max() / np.abs(grad).max()
    assert error < 2e-3, (path, error)


def test_a_feature_without_weights_is_not_nan():
  model = _of_one_layer('Gemma4_31B', targets='down')
  params = random_params.make(model)
  weight = params['layer_0']['mlp']['linear']
  params['layer_0']['mlp']['linear'] = weight.at[:, 3].set(0)
  _start(model, params)
  original, lora = peft.split_params(params)
  want = jax.jit(lambda p: _logits(model.model, p))(original)

  @jax.jit
  def grads_and_logits(lora):
    def loss(lora):
      logits = _logits(model, peft.merge_params(original, lora))
      return logits.sum(), logits

    return jax.grad(loss, has_aux=True)(lora)

  grads, got = grads_and_logits(lora)
  np.testing.assert_allclose(got, want, atol=1e-4)
  for path, grad in training.flat(grads).items():
    assert np.all(np.isfinite(grad)), path


def test_dropout_reaches_the_change_of_the_base_too():
  """As in PEFT: where m is twice the norm and B zero, half is dropped."""
  model = _model('Gemma4_31B', targets=['v', 'o'])
  params = random_params.make(model)
  _start(model, params)
  for view in g4.nn.linears(model, params).values():
    _set(params, f'{view.row.lora_path}.m', 2 * view.lora_m)

  @functools.partial(jax.jit, static_argnums=(0, 2))
  def attention(model, key, is_training=True):  # Compiles that layer alone.
    _, state = model.apply(
        {'params': params},
        _TOKENS,
        rngs={'dropout': key},
        is_training_property=is_training,
        capture_intermediates=lambda m, _: m.name == 'attn',
    )
    return state['intermediates']['layer_0']['attn']['__call__'][0][1]

  keys = jax.random.split(jax.random.key(0), 400)
  off = attention(model, keys[0])
  dropped = model.clone(dropout=0.4)
  np.testing.assert_array_equal(attention(dropped, keys[0], False), off)
  runs = jax.lax.map(lambda key: attention(dropped, key), keys)
  spread = np.std(runs, axis=0).mean()
  assert spread > 0.05 * np.abs(off).mean()
  error = np.abs(np.mean(runs, axis=0) - off).mean()
  assert error < 4 * spread / np.sqrt(len(keys))


def test_magnitudes_are_counted():
  model = _of_one_layer('Gemma4_E2B')
  params = random_params.make(model)
  leaves = training.flat(peft.split_params(params).lora)
  summary = g4.nn.summary(model)
  assert summary.trainable == sum(x.size for x in leaves.values())
  assert sum(g.num_params for g in summary.groups) == summary.trainable
  plain = g4.nn.summary(model.clone(use_dora=False))
  magnitudes = sum(x.size for p, x in leaves.items() if p.endswith('.m'))
  assert summary.trainable - plain.trainable == magnitudes > 0


# -------------------------------- Bad input ---------------------------------


def test_experts_are_refused():
  with pytest.raises(
      ValueError, match='use_dora=True does not reach routed experts'
  ):
    _model('Gemma4_26B_A4B', targets=['attention', 'experts'])


def test_missing_magnitudes_are_not_drawn_anew():
  model = _model('Gemma4_31B')
  params = random_params.make(model.clone(use_dora=False))
  with pytest.raises(ValueError, match=r'q_einsum\.lora\.q\.m.*use_dora='):
    model.apply({'params': params}, _TOKENS, mutable=True)


def test_magnitudes_are_not_ignored():
  model = _model('Gemma4_31B')
  params = random_params.make(model)
  with pytest.raises(ValueError, match=r'be ignored: .*q\.m.* use_dora=True'):
    _logits(model.clone(use_dora=False), params)
