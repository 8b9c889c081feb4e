"""What a user writes in `quantize=`."""

import json

import jax.numpy as jnp
from kauldron import konfig
import pytest

from gemma4_lora import g4


def test_names_stand_for_formats():
  assert g4.quant.normalize('int4') == (g4.quant.Int4(),)
  assert g4.quant.normalize(['int8', g4.quant.NF4('mlp')]) == (
      g4.quant.Int8(),
      g4.quant.NF4('mlp'),
  )
  assert g4.quant.normalize(None) == ()


@pytest.mark.parametrize(
    ('format_', 'shape', 'in_axes', 'block'),
    [
        (g4.quant.Int8(), (8, 1536, 256), (1,), (1, 1536, 1)),
        (g4.quant.Int8(), (8, 256, 1536), (0, 1), (8, 256, 1)),
        (g4.quant.Int4(), (8, 256, 1536), (0, 1), (1, 32, 1)),
        # A group may span heads, as it does in a matrix of `heads * size` rows.
        (g4.quant.Int4(), (4, 8, 32), (0, 1), (4, 8, 1)),
        (g4.quant.Int4(group_size=16), (4, 8, 32), (0, 1), (2, 8, 1)),
        # No more than all there are.
        (g4.quant.Int4(), (4, 10), (1,), (1, 10)),
        (g4.quant.NF4(), (2, 128, 6), (1,), (1, 64, 1)),
    ],
)
def test_neighbours_along_the_input_share_a_scale(
    format_, shape, in_axes, block
):
  layout = format_.layout(shape, in_axes, name='x')
  assert layout.block == block
  assert layout.kind == format_.kind


@pytest.mark.parametrize(
    ('group_size', 'shape', 'in_axes'),
    [(32, (48, 4), (0,)), (5, (8, 4), (0,)), (24, (4, 32, 8), (0, 1))],
)
def test_a_group_size_that_does_not_divide_is_an_error(
    group_size, shape, in_axes
):
  format_ = g4.quant.Int4(group_size=group_size)
  with pytest.raises(
      ValueError,
      match=rf'group_size={group_size} does not divide the input of layer_0.q',
  ):
    format_.layout(shape, in_axes, name='layer_0.q')


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: g4.quant.normalize([]), r'quantize=\[\] quantises nothing'),
        (lambda: g4.quant.normalize('int3'), "takes 'int8', 'int4'.*'int3'"),
        (lambda: g4.quant.normalize(4), 'Got: 4'),
        (lambda: g4.quant.Int4(group_size=0), 'group_size= takes a positive'),
        (lambda: g4.quant.NF4(group_size=2.0), 'Got: 2.0'),
        (lambda: g4.quant.Int4(scale_dtype='int8'), 'scale_dtype= takes'),
    ],
)
def test_bad_input(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_scales_of_the_wanted_dtype():
  layout = g4.quant.Int4(scale_dtype='float32').layout((64, 2), (0,), name='x')
  assert layout.scale_dtype == jnp.float32


def test_formats_survive_a_config():
  with konfig.imports():
    from gemma4_lora import g4 as lazy  # pylint: disable=g-import-not-at-top
  config = konfig.ConfigDict(
      {
          'quantize': [
              lazy.quant.Int8(['embeddings', 'mlp']),
              lazy.quant.NF4(group_size=32, double=True),
          ]
      }
  )
  config = konfig.ConfigDict(json.loads(config.to_json()))
  assert g4.quant.normalize(konfig.resolve(config).quantize) == (
      g4.quant.Int8(('embeddings', 'mlp')),
      g4.quant.NF4(group_size=32, double=True),
  )
