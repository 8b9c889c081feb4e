"""Which leaves of KV-shared layers may be absent, and which never."""

from gemma import gm
import jax
import numpy as np
import pytest

from gemma4_lora import _trees
from gemma4_lora import g4
from gemma4_lora.ckpts.restore import _kv_sharing
from gemma4_lora.gemma4 import _names
from gemma4_lora.testing import _checkpoints
from tests.lib import states

_KV = ('kv_einsum.w', 'key_norm.scale')


def _shapes(model):
  flat = _trees.flatten(_checkpoints.abstract_params(model))
  return {_names.canonical(k): v.shape for k, v in flat.items()}


def _prunable(shapes, layers, leaves=_KV, prefix=''):
  """Returns the layers that are excused if some lack some leaves."""
  gone = {f'{prefix}layer_{i}.attn.{leaf}' for i in layers for leaf in leaves}
  present = [k for k in shapes if _trees.join(k) not in gone]
  return sorted(
      {
          int(k[0].removeprefix('layer_'))
          for k in _kv_sharing.prunable(shapes, present)
      }
  )


@pytest.mark.parametrize(
    ('model', 'first'),
    [(gm.nn.Gemma4_E2B, 15), (gm.nn.Gemma4_E4B, 24)],
)
def test_real_models(model, first):
  """The layers that the released models share are excused, all of them."""
  shapes = _shapes(model(tokens='x', text_only=True))
  n = _names.num_layers(shapes)
  assert _prunable(shapes, range(first, n)) == list(range(first, n))
  # With a layer less, or one more, something is missing after all.
  assert _prunable(shapes, range(first + 1, n)) != list(range(first + 1, n))
  assert _prunable(shapes, range(first - 1, n)) == list(range(first, n))


@pytest.mark.parametrize('variant', ['Gemma4_E2B', 'Gemma4_E4B'])
def test_tiny_models(variant):
  shapes = _shapes(states.model(variant))
  assert _prunable(shapes, [3, 4, 5]) == [3, 4, 5]


@pytest.mark.parametrize(
    'layers',
    [[0], [2], [3], [4], [3, 4], [0, 1, 2], [0, 1, 2, 3, 5], range(6), []],
)
@pytest.mark.parametrize('variant', ['Gemma4_E2B', 'Gemma4_E4B'])
def test_layers_that_are_not_shared(variant, layers):
  """Gaps, runs that stop early and a whole model are missing leaves."""
  shapes = _shapes(states.model(variant))
  excused = _prunable(shapes, layers)
  # Of a whole model without k and v, the last layers may lack them.
  assert excused == ([3, 4, 5] if len(layers) == 6 else [])


@pytest.mark.parametrize('leaf', _KV)
def test_all_leaves_of_a_layer_or_none(leaf):
  """A layer with one of its leaves is not pruned but broken."""
  shapes = _shapes(states.model('Gemma4_E2B'))
  assert not _prunable(shapes, [3, 4, 5], [leaf])


@pytest.mark.parametrize('variant', ['Gemma4_31B', 'Gemma4_26B_A4B'])
def test_models_without_sharing(variant):
  """No leaf of 31B or 26B_A4B is excused."""
  shapes = _shapes(states.model(variant))
  assert not _prunable(shapes, [3, 4, 5], (*_KV, 'k_einsum.w'))


def test_layer_that_is_not_there_at_all():
  """A checkpoint that stops early is not one that was pruned."""
  shapes = _shapes(states.model('Gemma4_E2B'))
  present = [k for k in shapes if k[0] not in ('layer_3', 'layer_4', 'layer_5')]
  assert not _kv_sharing.prunable(shapes, present)


@pytest.mark.parametrize('layout', states.LAYOUTS)
@pytest.mark.parametrize('variant', ['Gemma4_E2B', 'Gemma4_E4B'])
def test_restore_of_a_pruned_checkpoint(checkpoint, caplog, variant, layout):
  """Without permission: k and v become 0, key norms 1, all else the file's."""
  path, params = checkpoint(variant, layout, prune_shared_kv=True)
  state = states.make_state(variant, lora='ours')
  before = states.specs(state)
  caplog.set_level('INFO', logger='absl')

  out = g4.ckpts.SkipLoRA4(
      wrapped=gm.ckpts.LoadCheckpoint(path=path)
  ).transform(state)

  assert states.specs(out) == before
  pruned = [f'layer_{i}.attn.{leaf}' for i in (3, 4, 5) for leaf in sorted(_KV)]
  assert sorted(states.differing(out.params, params)) == sorted(pruned)
  for i in (3, 4, 5):
    attn = out.params[f'layer_{i}']['attn']
    assert np.all(np.asarray(attn['kv_einsum']['w']) == 0)
    assert np.all(np.asarray(attn['key_norm']['scale']) == 1)
  assert 'filled 6 k, v and key norms of KV-shared layers' in caplog.text


def test_pruned_into_abstract_and_sharded_state(checkpoint):
  """Filled leaves have a value, and the sharding of the state."""
  path, _ = checkpoint('Gemma4_E2B', prune_shared_kv=True)
  state = states.abstract(states.make_state('Gemma4_E2B', lora='ours'))
  out = g4.ckpts.PartialLoad(path=path).transform(state)
  assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(out.params))


def test_middle_layer_is_missing_beside_pruned_ones(tmp_path):
  """What is excused does not excuse what is not."""
  params = _checkpoints.random_params(
      _checkpoints.abstract_params(states.model('Gemma4_E2B'))
  )
  for i in (1, 3, 4, 5):
    del params[f'layer_{i}']['attn']['kv_einsum']
    del params[f'layer_{i}']['attn']['key_norm']
  gm.ckpts.save_params(params, tmp_path / 'c', wait_until_finished=True)
  state = states.make_state('Gemma4_E2B', lora='ours')
  with pytest.raises(ValueError, match='2 leaves of the model are') as e:
    g4.ckpts.PartialLoad(path=tmp_path / 'c').transform(state)
  assert 'params.layer_1.attn.kv_einsum.w' in str(e.value)
  assert 'layer_3' not in str(e.value)
  states.assert_usable(state)


def test_tower_leaves_of_the_same_names(tmp_path):
  """k, v and key norm of the vision tower are never excused."""
  model = states.model('Gemma4_E2B', text_only=False)
  params = _checkpoints.random_params(_checkpoints.abstract_params(model))
  block = params['vision_encoder']['transformer']['stacked_layers']['block']
  del block['attn']['key_norm']
  gm.ckpts.save_params(params, tmp_path / 'c', wait_until_finished=True)
  with pytest.raises(ValueError, match='1 leaves of the model') as e:
    g4.ckpts.PartialLoad(path=tmp_path / 'c').transform(
        states.make_state('Gemma4_E2B', text_only=False)
    )
  assert 'vision_encoder.transformer.stacked_layers.block.attn.key_norm' in str(
      e.value
  )


def test_redundant_leaves_of_the_checkpoint(checkpoint, caplog):
  """A model that declares no k and v for shared layers leaves them out."""
  path, params = checkpoint('Gemma4_E2B')
  state = states.make_state('Gemma4_E2B', lora='ours')
  for i in (3, 4, 5):
    del state.params[f'layer_{i}']['attn']['kv_einsum']
    del state.params[f'layer_{i}']['attn']['key_norm']
  caplog.set_level('INFO', logger='absl')
  out = g4.ckpts.PartialLoad(path=path).transform(state)
  got, want = states.base_leaves(out.params), states.base_leaves(params)
  assert all(v.tobytes() == want[k].tobytes() for k, v in got.items())
  assert 'left out 6 k, v and key norms of KV-shared layers' in caplog.text
