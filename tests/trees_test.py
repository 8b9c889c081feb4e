"""Paths into trees of dicts, tuples and objects."""

import collections

import jax.numpy as jnp
import optax
import pytest

from gemma4_lora import _trees
from tests.lib import states


def test_flatten_names_leaves_as_orbax_stores_them():
  """Tuples count as lists, named tuples as dicts of their fields."""
  params = {'a': {'w': jnp.ones(2)}}
  state = states.wrap(params).replace(opt_state=optax.adam(1.0).init(params))
  assert list(map(_trees.join, _trees.flatten(state))) == [
      'step',
      'params.a.w',
      'opt_state.0.count',
      'opt_state.0.mu.a.w',
      'opt_state.0.nu.a.w',
  ]


def test_parts():
  assert _trees.segments('opt_state[0].mu') == ('opt_state', '0', 'mu')


def test_get_and_replace():
  pair = collections.namedtuple('pair', 'x, y')
  tree = {'a': [1, pair(x=2, y={'b': 3})]}
  path = ('a', '1', 'y', 'b')
  assert _trees.get_at(tree, path) == 3
  assert _trees.replace_at(tree, path, 4) == {'a': [1, pair(x=2, y={'b': 4})]}
  assert tree == {'a': [1, pair(x=2, y={'b': 3})]}
  by_index = _trees.replace_at(tree, ('a', '1', '0'), 5)
  assert by_index['a'][1] == pair(x=5, y={'b': 3})


@pytest.mark.parametrize('path', [('b',), ('a', '7'), ('a', '0', 'c')])
def test_get_says_how_far_it_came(path):
  with pytest.raises(KeyError, match=_trees.join(path)):
    _trees.get_at({'a': [1]}, path)


@pytest.mark.parametrize('lora', ['ours', 'head', None])
def test_split_and_merge(lora):
  """Without its LoRA leaves the tree is the model's, stubs included."""
  params = states.make_state('Gemma4_E2B', lora=lora).params
  base, branches = _trees.split_lora(params)
  assert (
      _trees.flatten(base).keys()
      == _trees.flatten(states.make_state('Gemma4_E2B').params).keys()
  )
  assert '_LoRAEinsum' not in str(base.keys())
  assert all(map(_trees.is_lora, _trees.flatten(branches)))
  merged = _trees.merge(base, branches)
  flat = _trees.flatten(params)
  assert {k: id(v) for k, v in _trees.flatten(merged).items()} == {
      k: id(v) for k, v in flat.items()
  }


def test_dotted_paths():
  params = {'a': {'b': jnp.ones((2, 3))}}
  assert list(_trees.dotted(params)) == ['a.b']
  assert _trees.get(params, 'a.b') is _trees.find(params, 'a.b')
  assert _trees.find(params, 'a.b.c') is None
  with pytest.raises(ValueError, match="params has no a.c: there is no 'c'"):
    _trees.get(params, 'a.c')
  _trees.put_like(params, 'a.b', jnp.zeros(6, jnp.bfloat16))
  assert params['a']['b'].shape == (2, 3)
  assert params['a']['b'].dtype == jnp.float32
  _trees.put(params, 'a.b', 1)
  assert params == {'a': {'b': 1}}
