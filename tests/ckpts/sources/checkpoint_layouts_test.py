"""Names of released layouts, renamed without a file."""

import numpy as np
import pytest

from gemma4_lora.ckpts.sources import _checkpoint_layouts


def _leaf(*key, shape=(2, 3)):
  return _checkpoint_layouts.Stored(
      path=key, key=key, shape=shape, dtype=np.dtype('float32')
  )


def _names(*leaves):
  layout, out = _checkpoint_layouts.nested(leaves)
  return layout, {x.name: (x.index, x.shape) for x in out}


def test_nested():
  assert _names(_leaf('layer_0', 'mlp', 'linear', 'w')) == (
      'nested',
      {'params.layer_0.mlp.linear.w': (None, (2, 3))},
  )


def test_kauldron():
  assert _names(
      _leaf('params', 'layer_0', 'skip_scale'), _leaf('step', shape=())
  ) == (
      'kauldron',
      {
          'params.layer_0.skip_scale': (None, (2, 3)),
          'step': (None, ()),
      },
  )


@pytest.mark.parametrize('path', [('layer_0', 'w'), ('params', 'x')])
def test_a_state_of_nnx_is_an_error(path):
  leaves = _leaf(*path, 'value'), _leaf(*path[:-1], 'b', 'raw_value')
  with pytest.raises(ValueError, match=r'end in \.value.*nnx\.to_pure_dict'):
    _names(*leaves, *[_leaf('step', shape=())] * ('params' in path))
  assert _names(*leaves, _leaf(*path[:-1], 'c'))  # A name like another.


def test_flat():
  """The vision tower has a root of its own there."""
  assert _names(
      _leaf('transformer/layer_0/mlp/linear', 'w'),
      _leaf('transformer/layer_0', 'skip_scale'),
      _leaf('SigLiPFromPatches_0/entry', 'pos_emb'),
  ) == (
      'flat',
      {
          'params.layer_0.mlp.linear.w': (None, (2, 3)),
          'params.layer_0.skip_scale': (None, (2, 3)),
          'params.vision_encoder.entry.pos_emb': (None, (2, 3)),
      },
  )


def test_stacked():
  """Layer `i` of attention type `t` is `i * number of types + t`."""
  root = 'transformer/stacked_layers/attention_type_'
  layout, names = _names(
      _leaf(f'{root}0/attn/q_einsum', 'w'),
      _leaf(f'{root}2', 'skip_scale', shape=(3, 1)),
      _leaf('transformer/embedder', 'input_embedding'),
  )
  assert layout == 'stacked'
  assert names == {
      'params.layer_0.attn.q_einsum.w': (0, (3,)),
      'params.layer_3.attn.q_einsum.w': (1, (3,)),
      'params.layer_2.skip_scale': (0, (1,)),
      'params.layer_5.skip_scale': (1, (1,)),
      'params.layer_8.skip_scale': (2, (1,)),
      'params.embedder.input_embedding': (None, (2, 3)),
  }
