"""Shapes of a projection's LoRA leaves, and which axes of the weight they have."""

import math

from gemma import gm
import pytest

from gemma4_lora import variants
from gemma4_lora.gemma4 import _linears
from gemma4_lora.targets import _resolve

_M = next(leaf for _, leaf in variants.owners() if leaf.name == 'm')


def _row(cls, name):
  return next(x for x in _linears.linears(cls.config) if x.name == name)


# v of a global layer, in kv_einsum[2, K, D, H]; up of the experts, in
# gating_einsum[E, 2, F, D]; o, which is contracted over two axes.
_V = _row(gm.nn.Gemma4_E2B, 'layer_4.attn.v')
_UP = _row(gm.nn.Gemma4_26B_A4B, 'layer_0.mlp.expert_up')
_O = _row(gm.nn.Gemma4_E2B, 'layer_4.attn.o')


@pytest.mark.parametrize(
    ('leaf', 'row', 'shape', 'axes', 'sizes'),
    [
        (variants.A, _V, (1536, 8), (2, None), (1536, 8)),
        (variants.B, _V, (8, 1, 512), (None, 1, 3), (8, 512)),
        (_M, _V, (1, 512), (1, 3), (512,)),
        (variants.A, _UP, (128, 2816, 8), (0, 3, None), (2816, 8)),
        (variants.B, _UP, (128, 8, 704), (0, None, 2), (8, 704)),
        (variants.A, _O, (8, 512, 8), (0, 1, None), (4096, 8)),
        (variants.B, _O, (8, 1536), (None, 2), (8, 1536)),
    ],
)
def test_a_leaf_is_the_batch_then_its_sides(leaf, row, shape, axes, sizes):
  assert leaf.shape(row, rank=8) == shape
  assert leaf.axes(row) == axes
  assert leaf.sizes(row, rank=8) == sizes


def test_layers_of_a_stacked_weight_are_a_batch():
  row = next(
      x
      for x in _linears.linears(gm.nn.Gemma4_31B(text_only=False).config)
      if x.tower == 'vision' and x.projection == 'v'
  )
  # 27 layers, 16 heads of 72, width 1152.
  assert variants.A.shape(row, 8) == (27, 1152, 8)
  assert variants.B.shape(row, 8) == (27, 8, 16, 72)
  assert variants.A.shape(row.one_layer, 8) == (1152, 8)
  assert _M.shape(row, 8) == (27, 16, 72)


def test_all_leaves_are_counted():
  for variant in variants.PLAIN, variants.chosen({'use_dora': True}):
    linear = _resolve.Adapted(
        row=_V, rank=8, alpha=8, dropout=0.0, variant=variant
    )
    sizes = {'a': 8 * 1536, 'b': 8 * 512, 'm': 512}
    assert list(linear.shapes) == [leaf.name for leaf in variant.leaves]
    assert linear.num_params == sum(sizes[name] for name in linear.shapes)
    assert math.prod(linear.shapes['a']) == sizes['a']
