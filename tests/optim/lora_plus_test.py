"""LoRA+: B learns faster, and nothing else changes."""

import json

import jax
import jax.numpy as jnp
from kauldron import kd
from kauldron import konfig
import numpy as np
import optax
import pytest

from gemma4_lora import g4
from tests.lib import models
from tests.lib import random_params
from tests.lib import training


def _params():
  """As g4.nn.LoRA makes them, DoRA's magnitude and a base `b` included."""
  rng = np.random.default_rng(0)

  def draw(*shape):
    return jnp.asarray(rng.standard_normal(shape, np.float32))

  return {
      'attn': {
          'q_einsum': {
              'w': draw(3, 4),
              'b': draw(4),
              'lora': {'q': {'a': draw(3, 2), 'b': draw(2, 4), 'm': draw(4)}},
          }
      },
      'mlp': {
          'linear': draw(3, 4),
          'lora': {'down': {'a': draw(3, 2), 'b': draw(2, 4)}},
      },
  }


def _run(optimizer, params, num_steps=3):
  """Takes steps on the gradients of a function that is not linear."""
  state = optimizer.init(params)
  for _ in range(num_steps):
    grads = jax.tree.map(jnp.sin, params)
    updates, state = optimizer.update(grads, state, params)
    params = optax.apply_updates(params, updates)
  return training.flat(params)


_B = ('attn.q_einsum.lora.q.b', 'mlp.lora.down.b')


@pytest.mark.parametrize(
    'make',
    [
        lambda factor: optax.sgd(factor * 1e-2),
        lambda factor: optax.adamw(factor * 1e-2, weight_decay=0.1),
        lambda factor: optax.adam(
            optax.linear_schedule(factor * 1e-2, factor * 5e-2, 3)
        ),
    ],
    ids=['sgd', 'adamw', 'schedule'],
)
def test_b_has_a_larger_learning_rate_and_the_rest_has_not(make):
  """Equal to each leaf trained with a learning rate of its own."""
  params = _params()
  got = _run(g4.optim.lora_plus(make(1), lr_ratio=8), params)
  slow, fast = _run(make(1), params), _run(make(8), params)
  for path, leaf in got.items():
    want, other = (fast, slow) if path in _B else (slow, fast)
    np.testing.assert_allclose(leaf, want[path], rtol=1e-5, err_msg=path)
    assert np.abs(leaf - other[path]).max() > 1e-3, path


def test_inside_partial_updates_only_lora_moves():
  params = _params()
  plus = g4.optim.lora_plus(optax.adam(1e-2), lr_ratio=8)
  got = _run(
      kd.optim.partial_updates(plus, mask=kd.optim.select('lora')), params
  )
  alone = _run(plus, params)
  before = training.flat(params)
  for path, leaf in got.items():
    want = alone if '.lora.' in path else before
    np.testing.assert_array_equal(leaf, want[path], err_msg=path)


def test_a_ratio_of_one_changes_nothing():
  params = _params()
  got = _run(g4.optim.lora_plus(optax.adam(1e-2), lr_ratio=1), params)
  for path, leaf in _run(optax.adam(1e-2), params).items():
    np.testing.assert_array_equal(got[path], leaf, err_msg=path)


def test_knows_the_leaves_of_a_model():
  """After one step of Adam from zero, B = lr * ratio."""
  model = models.lora(cut=models.one_layer, rank=2, targets='down')
  params = random_params.shapes(model)
  optimizer = kd.optim.partial_updates(
      g4.optim.lora_plus(optax.adam(1e-3), lr_ratio=16),
      mask=kd.optim.select('lora'),
  )

  @jax.jit
  def step():
    ones = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), params)
    updates, _ = optimizer.update(ones, optimizer.init(ones), ones)
    return updates['layer_0']['mlp']['lora']['down']

  updates = step()
  np.testing.assert_allclose(np.abs(updates['b']), 16e-3, rtol=1e-2)
  np.testing.assert_allclose(np.abs(updates['a']), 1e-3, rtol=1e-2)


def test_survives_json():
  with konfig.imports():
    import optax as cfg_optax

    from gemma4_lora import g4 as cfg_g4

  cfg = konfig.ConfigDict(
      {'optimizer': cfg_g4.optim.lora_plus(cfg_optax.adam(1e-2), lr_ratio=8)}
  )
  assert '"gemma4_lora.g4:optim.lora_plus"' in cfg.to_json()
  again = konfig.resolve(konfig.ConfigDict(json.loads(cfg.to_json())))
  want = _run(g4.optim.lora_plus(optax.adam(1e-2), lr_ratio=8), _params())
  for path, leaf in _run(again.optimizer, _params()).items():
    np.testing.assert_array_equal(leaf, want[path], err_msg=path)


@pytest.mark.parametrize('lr_ratio', [0, -1.0, float('nan'), float('inf')])
def test_ratio_must_be_positive(lr_ratio):
  with pytest.raises(ValueError, match='lr_ratio= takes a positive number'):
    g4.optim.lora_plus(optax.adam(1e-2), lr_ratio=lr_ratio)


def test_no_b():
  """A mask that selects something else, or a model without LoRA."""
  optimizer = kd.optim.partial_updates(
      g4.optim.lora_plus(optax.adam(1e-2), lr_ratio=8),
      mask=kd.optim.select('w'),
  )
  with pytest.raises(ValueError, match='is a B of LoRA.*attn.q_einsum.w'):
    optimizer.init(_params())
