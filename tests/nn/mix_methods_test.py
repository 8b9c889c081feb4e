"""LoRAs mixed as PEFT mixes them, against what it made (`mix_reference`)."""

import functools
import pathlib

from gemma import peft
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4_lora import g4
from gemma4_lora.nn import _mix_methods
from tests.lib import models
from tests.lib import random_params

_FILE = pathlib.Path(__file__).parents[1] / 'testdata' / 'mixed_by_peft.npz'
_WEIGHTS = {'one': 0.7, 'two': -0.4, 'three': 1.5}


def _mixed(method, names=tuple(_WEIGHTS), **kwargs):
  data = np.load(_FILE)
  parts = [
      _mix_methods.Part(
          a=data[f'{name}.a'].T,
          b=data[f'{name}.b'].T,
          scale=float(data[f'{name}.scale']),
          weight=weight,
      )
      for name, weight in _WEIGHTS.items()
      if name in names
  ]
  defaults = dict(
      density=0.6,
      majority_sign='total',
      rank=None,
      rng=np.random.default_rng(0),
  )
  return _mix_methods.mixed(parts, method=method, **defaults | kwargs)


@pytest.mark.parametrize(
    'name,kwargs',
    [
        ('cat', {}),
        ('linear', {}),
        ('svd', {'rank': 2}),
        ('ties', {}),
        ('ties_frequency', {'majority_sign': 'frequency'}),
        ('ties_svd', {'rank': 4}),
        ('magnitude_prune', {}),
        ('magnitude_prune_svd', {'rank': 4}),
    ],
)
def test_product_is_that_of_peft(name, kwargs):
  a, b = _mixed(name.removesuffix('_frequency'), **kwargs)
  want = np.load(_FILE)[f'{name}.delta'].T
  np.testing.assert_allclose(a @ b, want, rtol=2e-5, atol=2e-5)
  assert a.shape[-1] == kwargs.get('rank', 9 if name == 'cat' else 3)


@pytest.mark.parametrize('method', ['dare_linear', 'dare_ties'])
def test_chance_leaves_out_entries_and_makes_the_others_larger(method):
  """From one LoRA: each entry is 0, or itself over the density."""
  whole = _mixed(method, ['one'], density=1.0)
  for got, want in zip(whole, _mixed('linear', ['one']), strict=True):
    np.testing.assert_array_equal(got, want)
  kept = 0
  for got, want in zip(
      _mixed(method, ['one'], density=0.6), whole, strict=True
  ):
    np.testing.assert_allclose(got[got != 0], want[got != 0] / 0.6, rtol=1e-6)
    kept += np.count_nonzero(got)
  # 66 entries: 5 standard deviations.
  assert abs(kept / 66 - 0.6) < 0.3


@pytest.mark.parametrize('like', ['linear', 'ties'])
def test_all_entries_are_the_method_without_chance(like):
  for got, want in zip(
      _mixed(f'dare_{like}', density=1.0),
      _mixed(like, density=1.0),
      strict=True,
  ):
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_the_same_seed_draws_the_same():
  first, second, third = (
      _mixed('dare_ties_svd', rng=np.random.default_rng(seed))[0]
      for seed in (1, 1, 2)
  )
  np.testing.assert_array_equal(first, second)
  assert np.any(first != third)


# ------------------------------ Whole models ------------------------------


def _lora(*, seed, name='Gemma4_31B', **kwargs):
  model = models.lora(name, cut=models.one_layer, **{'rank': 2} | kwargs)
  params = random_params.make(model, seed=seed)
  return model, peft.split_params(params).lora


@pytest.fixture(scope='module')
def mix():
  return g4.nn.LoRAMix(
      {
          'fr': _lora(targets=['attention', 'down'], alpha=3.0, seed=1),
          'de': _lora(targets=['o', 'mlp'], use_rslora=True, seed=2),
      }
  )


def _products(model, params):
  return {
      key: view.scale * np.tensordot(view.lora_a, view.lora_b, 1)
      for key, view in g4.nn.linears(model, params).items()
  }


def _base(name='Gemma4_31B'):
  base = models.base(name, cut=models.one_layer, dtype=jnp.float32)
  return random_params.make(base)


@pytest.mark.parametrize('method,kwargs', [('cat', {}), ('svd', {'rank': 4})])
def test_is_the_weighted_sum(mix, method, kwargs):
  """`svd` too, at the rank of the sum; and PEFT reads what is saved."""
  weights = {'fr': 0.7, 'de': -0.4}
  base = _base()
  want = _products(mix.model, mix.params(base, weights))
  model, lora = mix.merged(weights, method=method, **kwargs)
  got = _products(model, peft.merge_params(base, lora))
  assert got.keys() == want.keys()
  for key, value in want.items():
    np.testing.assert_allclose(got[key], value, atol=3e-5, err_msg=key)


def test_one_alone_adapts_what_it_adapts(mix, tmp_path):
  model, lora = mix.merged({'fr': 2.0}, method='linear')
  assert {x.row.projection for x in model.adapted} == {
      *('q', 'k', 'v', 'o', 'down')
  } & {x.row.projection for x in mix.model.adapted}
  g4.hf.save_peft(tmp_path / 'x', model=model, params=lora)
  loaded = g4.hf.load_peft(tmp_path / 'x', model=model.model)
  jax.tree.map(np.testing.assert_array_equal, loaded.params, lora)


def test_each_expert_has_its_own_closest_product():
  make = functools.partial(
      _lora, name='Gemma4_26B_A4B', targets='experts', rank=1
  )
  mix = g4.nn.LoRAMix({'x': make(seed=1), 'y': make(seed=2)})
  base, weights = _base('Gemma4_26B_A4B'), {'x': 1.0, 'y': 0.5}
  model, lora = mix.merged(weights, method='svd', rank=2)
  got = g4.nn.linears(model, peft.merge_params(base, lora))
  want = g4.nn.linears(mix.model, mix.params(base, weights))
  assert got.keys() == want.keys()
  for key in want:
    products = [
        x.scale * np.einsum('eir,ero->eio', x.lora_a, x.lora_b)
        for x in (got[key], want[key])
    ]
    np.testing.assert_allclose(*products, atol=3e-5)


@pytest.mark.parametrize(
    'weights,kwargs,match',
    [
        ({'f': 1}, {}, "has no LoRA 'f': .* Did you mean 'fr'"),
        ({}, {}, 'takes a weight or more'),
        ({'fr': float('nan')}, {}, "weight of 'fr' is nan"),
        ({'fr': 1}, {'method': 'tie'}, "method=.* takes one of .*'tie'"),
        ({'fr': 1}, {'method': 'ties'}, 'takes a density above 0'),
        (
            {'fr': 1},
            {'method': 'ties', 'density': 1.5},
            r'Got: density=1\.5',
        ),
        ({'fr': 1}, {'density': 0.5}, "'cat' has no density=0.5"),
        ({'fr': 1}, {'rank': 2}, "'cat' has no rank=2"),
        ({'fr': 1}, {'method': 'svd', 'rank': 0}, 'rank= takes a positive'),
        (
            {'fr': 1},
            {'majority_sign': 'most'},
            "majority_sign=.* takes one of .*'most'",
        ),
    ],
)
def test_wrong_arguments(mix, weights, kwargs, match):
  with pytest.raises(ValueError, match=match):
    mix.merged(weights, **kwargs)


def test_ranks_that_differ():
  mix = g4.nn.LoRAMix(
      {
          'a': _lora(targets='o', seed=1),
          'b': _lora(targets='o', rank=3, seed=2),
      }
  )
  with pytest.raises(ValueError, match=r"has ranks \[2, 3\].*method='linear'"):
    mix.merged({'a': 1, 'b': 1}, method='linear')
  model, _ = mix.merged({'a': 1, 'b': 1}, method='svd')
  assert {x.shapes['a'][-1] for x in model.adapted} == {3}
