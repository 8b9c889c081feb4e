"""Which leaves of the base are held in which format."""

import math

import jax.numpy as jnp
import pytest

from gemma4_lora import g4
from gemma4_lora.gemma4 import _leaves
from gemma4_lora.gemma4 import _linears
from gemma4_lora.gemma4 import _sizes
from gemma4_lora.quant import _arrays
from gemma4_lora.quant import _by_leaf
from gemma4_lora.quant import _formats

_ROUTER_AND_SMALL = ('router', 'scale', 'norm', 'bias', 'clip', 'pos_emb')


def _resolve(model, *formats):
  return _by_leaf.resolve(_formats.normalize(list(formats)), model.config)


@pytest.mark.parametrize('name', _sizes.NAMES)
def test_all_of_the_released_models_but_what_is_small(name):
  """Bytes of 4 bits: at most 0.3 of bfloat16's; dead keys and values too."""
  model = next(x.cls for x in _sizes.SIZES if x.name == name)()
  rows = (*_linears.linears(model.config), *_leaves.leaves(model.config))
  shapes = {row.path: row.shape for row in rows}
  encodings = _resolve(model, 'int4')
  assert encodings.keys() <= shapes.keys()
  for path in shapes.keys() - encodings.keys():
    assert any(x in path for x in _ROUTER_AND_SMALL), path
  before = sum(2 * math.prod(x) for x in shapes.values())
  after = sum(
      _arrays.nbytes(encodings[path].abstract(x))
      if path in encodings
      else 2 * math.prod(x)
      for path, x in shapes.items()
  )
  assert after / before < 0.3
  assert after / before > 0.28  # 4.5 of 16 bits.


def test_towers_are_quantized_layer_by_layer():
  model = g4.testing.Gemma4_E2B(text_only=False)
  encodings = _resolve(model, g4.quant.Int4(group_size=2))
  path = 'vision_encoder.transformer.stacked_layers.block.attn.q_einsum.w'
  assert encodings[path].block[0] == 1
  assert any(path.startswith('audio_encoder') for path in encodings)
  assert 'embedder.mm_input_projection.w' in encodings


def test_the_first_that_selects_a_part_decides():
  model = g4.testing.Gemma4_26B_A4B()
  encodings = _resolve(
      model,
      g4.quant.Int8(['embeddings', g4.targets.attention(layers=0)]),
      g4.quant.NF4('experts', group_size=2),
      g4.quant.Int4(group_size=2),
  )
  assert encodings['embedder.input_embedding'].kind == 'int8'
  assert encodings['layer_0.attn.q_einsum.w'].kind == 'int8'
  assert encodings['layer_1.attn.q_einsum.w'].kind == 'int4'
  assert encodings['layer_0.mlp.gating_einsum.w'].kind == 'nf4'
  assert encodings['layer_0.mlp.linear.w'].kind == 'nf4'
  assert encodings['layer_0.mlp2.linear'].kind == 'int4'
  assert not [path for path in encodings if 'router' in path]


def test_dead_keys_and_values_are_quantized_with_the_others():
  """They are there, and the checkpoint may have them."""
  model = g4.testing.Gemma4_E2B()
  encodings = _resolve(model, g4.quant.Int8('attention'))
  last = model.config.num_layers - 1
  assert f'layer_{last}.attn.kv_einsum.w' in encodings


@pytest.mark.parametrize(
    ('formats', 'message'),
    [
        ([g4.quant.Int8('norms')], "'norms' matches no part"),
        ([g4.quant.Int8('router')], "'router' matches no part"),
        (
            [g4.quant.Int8('k')],
            r'selects layer_0.attn.k and not layer_0.attn.v',
        ),
        ([g4.quant.Int8(), 'int4'], 'selects only what an earlier format took'),
        ([g4.quant.Int8(g4.targets.Rule('q', rank=2))], 'has no rank'),
        (
            ['int4'],
            'group_size=32 does not divide the input of layer_0.mlp.down',
        ),
    ],
)
def test_bad_input(formats, message):
  with pytest.raises(ValueError, match=message):
    _resolve(g4.testing.Gemma4_E2B(), *formats)


def test_scales_of_a_table_are_by_row():
  encodings = _resolve(g4.testing.Gemma4_E2B(), g4.quant.Int8('embeddings'))
  table = encodings['embedder.per_layer_embeddings']
  assert table.scales_shape((1024, 6, 10)) == (1024, 6, 1)
  assert table.abstract((1024, 6, 10))['scales'].dtype == jnp.float32
