"""Several LoRAs on one base."""

import functools

from gemma import peft
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4_lora import g4
from tests.lib import forward
from tests.lib import models
from tests.lib import random_params

_TOKENS = jnp.asarray(np.random.default_rng(0).integers(3, 1000, (1, 8)))


_base = functools.partial(models.base, cut=models.one_layer, dtype=jnp.float32)


def _lora(name='Gemma4_31B', *, seed=0, **kwargs):
  """A model, and LoRA leaves of the size that training gives."""
  model = models.lora(name, cut=models.one_layer, **{'rank': 2} | kwargs)
  params = random_params.make(model, seed=seed)
  return model, jax.tree.map(lambda x: x / 2, peft.split_params(params).lora)


def _params(base, lora):
  return peft.merge_params(base, lora)


@pytest.fixture(scope='module')
def base():
  return random_params.make(_base())


@pytest.fixture(scope='module')
def loras():
  """Of other targets, ranks and scales; they share o and down."""
  down = g4.targets.Rule('down', layers=0, rank=1)
  return {
      'fr': _lora(targets=['attention', down], alpha=3.0, seed=1),
      'de': _lora(targets=['o', 'mlp'], rank=4, use_rslora=True, seed=2),
  }


def _logits(model, params):
  return forward.logits(model, params, _TOKENS)


@pytest.mark.parametrize('name', ['fr', 'de'])
def test_each_is_what_it_is_alone(name, base, loras):
  mix = g4.nn.LoRAMix(loras)
  model, lora = loras[name]
  np.testing.assert_allclose(
      _logits(mix.model, mix.params(base, name)),
      _logits(model, _params(base, lora)),
      atol=1e-4,
  )


def test_without_weights_it_is_the_base(base, loras):
  mix = g4.nn.LoRAMix(loras)
  np.testing.assert_allclose(
      _logits(mix.model, mix.params(base, {})),
      _logits(_base(), base),
      atol=1e-5,
  )


def test_a_mix_is_the_weighted_sum_of_the_products(base, loras):
  """A times B of each projection, against each LoRA's own."""
  mix = g4.nn.LoRAMix(loras)
  weights = {'fr': 0.7, 'de': -0.4}
  mixed = g4.nn.linears(mix.model, mix.params(base, weights))
  expected = {}
  for name, (model, lora) in loras.items():
    for key, view in g4.nn.linears(model, _params(base, lora)).items():
      product = np.tensordot(view.lora_a, view.lora_b, 1)
      product = weights[name] * view.scale * product
      expected[key] = expected.get(key, 0) + product
  assert mixed.keys() == expected.keys()
  for key, view in mixed.items():
    product = view.scale * np.tensordot(view.lora_a, view.lora_b, 1)
    np.testing.assert_allclose(product, expected[key], atol=1e-5)


def test_a_switch_compiles_nothing(base, loras):
  """All parameters have one structure, with shapes and dtypes."""
  mix = g4.nn.LoRAMix(loras)
  params = [
      mix.params(base, weights)
      for weights in ('fr', 'de', {'fr': 0.5, 'de': 0.5}, {})
  ]
  shapes = [jax.eval_shape(lambda x=x: x) for x in params]
  assert all(x == shapes[0] for x in shapes)
  outputs = [_logits(mix.model, x) for x in params]
  assert all(np.any(x != outputs[-1]) for x in outputs[:-1])


def test_experts():
  """Each expert's own branches, one behind the other."""
  name = 'Gemma4_26B_A4B'
  loras = {
      'x': _lora(name, targets='experts', rank=1, seed=1),
      'y': _lora(name, targets=['expert_down', 'q'], rank=3, seed=2),
  }
  base = random_params.make(_base(name))
  mix = g4.nn.LoRAMix(loras)
  model, lora = loras['y']
  np.testing.assert_allclose(
      _logits(mix.model, mix.params(base, 'y')),
      _logits(model, _params(base, lora)),
      atol=1e-4,
  )


def test_base_stays_the_same_arrays(base, loras):
  params = g4.nn.LoRAMix(loras).params(base, 'fr')
  assert params['final_norm']['scale'] is base['final_norm']['scale']


# -------------------------------- Errors ----------------------------------


def test_none():
  with pytest.raises(ValueError, match='one LoRA or more'):
    g4.nn.LoRAMix({})


@pytest.mark.parametrize(
    ('settings', 'match'),
    [
        ({'use_dora': True}, "'x' has use_dora=True"),
        ({'modules_to_save': 'norms'}, "'x' has modules_to_save="),
        ({'init_lora_weights': 'pissa'}, "'x' has init_lora_weights='pissa'"),
    ],
)
def test_what_is_no_sum_of_branches(settings, match):
  with pytest.raises(ValueError, match=match):
    g4.nn.LoRAMix({'x': _lora(**settings)})


def test_values_that_are_no_numbers(base, loras):
  model, params = loras['fr']
  params = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(jnp.nan), params)
  with pytest.raises(ValueError, match="'y': .* have NaN or infinite values"):
    g4.nn.LoRAMix({'x': loras['fr'], 'y': (model, params)})


def test_another_base():
  with pytest.raises(ValueError, match="'y' has another base model"):
    g4.nn.LoRAMix({'x': _lora(), 'y': _lora('Gemma4_E2B')})


def test_no_lora():
  with pytest.raises(ValueError, match="'x' takes a pair .* Got: Gemma4_31B"):
    g4.nn.LoRAMix({'x': (_base(), {})})


def test_unknown_name(base, loras):
  mix = g4.nn.LoRAMix(loras)
  with pytest.raises(ValueError, match=r"no LoRA 'frr': .*Did you mean 'fr'"):
    mix.params(base, 'frr')
  with pytest.raises(ValueError, match="weight of 'fr' is nan"):
    mix.params(base, {'fr': float('nan')})
