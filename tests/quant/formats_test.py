"""What a user writes in `quantize=`."""

import json

import jax.numpy as jnp
from kauldron import konfig
import pytest

from gemma4_lora import g4
from gemma4_lora.quant import _formats


def test_names_stand_for_formats():
  assert _formats.normalize('int4') == (g4.quant.Int4(),)
  assert _formats.normalize(['int8', g4.quant.NF4('mlp')]) == (
      g4.quant.Int8(),
      g4.quant.NF4('mlp'),
  )
  assert _formats.normalize(None) == ()


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
  encoding = format_.encoding(shape, in_axes, name='x')
  assert encoding.block == block
  assert encoding.kind == format_.kind


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
    format_.encoding(shape, in_axes, name='layer_0.q')


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: _formats.normalize([]), r'quantize=\[\] quantises nothing'),
        (lambda: _formats.normalize('int3'), "takes 'int8', 'int4'.*'int3'"),
        (lambda: _formats.normalize(4), 'Got: 4'),
        (lambda: g4.quant.Int4(group_size=0), 'group_size= takes a positive'),
        (lambda: g4.quant.NF4(group_size=2.0), 'Got: 2.0'),
        (lambda: g4.quant.Int4(scale_dtype='int8'), 'scale_dtype= takes'),
    ],
)
def test_bad_input(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_scales_of_the_wanted_dtype():
  encoding = g4.quant.Int4(scale_dtype='float32').encoding(
      (64, 2), (0,), name='x'
  )
  assert encoding.scale_dtype == jnp.float32


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
  assert _formats.normalize(konfig.resolve(config).quantize) == (
      g4.quant.Int8(('embeddings', 'mlp')),
      g4.quant.NF4(group_size=32, double=True),
  )


class _Other(g4.quant.NF4):
  """A format of 4 bits whose codes are as NF4's."""

  kind = 'other'


class _OtherName(_Other):
  codes_name = 'other_codes'


class _Bytes(g4.quant.Int8):
  """Its codes are in memory as those of NF4 are in files."""

  kind = 'bytes'
  codes_dtype = jnp.uint8


@pytest.mark.parametrize(
    ('cls', 'stored', 'message'),
    [
        (_Other, False, "NF4 and _Other both have 'codes' of dtype uint4:"),
        (_Bytes, True, "'codes' of dtype uint8 in files.*'bytes_codes'"),
    ],
)
def test_nothing_but_name_and_dtype_of_codes_tells_formats_apart(
    cls, stored, message
):
  with pytest.raises(ValueError, match=message):
    _formats.by_codes((*_formats.FORMATS, cls), stored=stored)


def test_formats_with_codes_of_one_dtype_stand_side_by_side():
  found = _formats.by_codes((*_formats.FORMATS, _OtherName))
  assert found['codes', jnp.dtype('uint4')] is g4.quant.NF4
  assert found['other_codes', jnp.dtype('uint4')] is _OtherName


def test_names_of_formats_are_their_own():
  with pytest.raises(ValueError, match="Two formats have kind 'nf4'"):
    _formats.by_name((g4.quant.NF4, type('Same', (g4.quant.NF4,), {})))


def test_names_of_codes_are_known_without_the_format():
  bad = type('Bad', (_Other,), {'codes_name': 'levels'})
  with pytest.raises(ValueError, match='codes_name should end in "_codes"'):
    _formats.by_codes((bad,))


@pytest.mark.parametrize(
    ('format_', 'held', 'constructor'),
    [
        (g4.quant.Int8(), 'int8', 'Int8()'),
        (g4.quant.Int4(), 'int4, groups of 32', 'Int4(group_size=32)'),
        (
            g4.quant.Int4(group_size=2, scale_dtype='float32'),
            'int4, groups of 2, float32 scales',
            "Int4(group_size=2, scale_dtype='float32')",
        ),
        (g4.quant.NF4(), 'nf4, groups of 64', 'NF4(group_size=64)'),
        (
            g4.quant.NF4(double=True),
            'nf4, groups of 64, int8 scales',
            'NF4(group_size=64, double=True)',
        ),
    ],
)
def test_encodings_in_words_and_as_a_user_would_write_them(
    format_, held, constructor
):
  encoding = format_.encoding((128, 4), (0,), name='x')
  assert encoding.text == held
  assert encoding.constructor == f'g4.quant.{constructor}'


def test_all_formats_are_public_and_what_users_never_write_is_not():
  public = {x for x in vars(g4.quant) if x[0] != '_'} - {'Any'}
  assert public == {
      *('Format', 'dequantize', 'is_quantized', 'quantize'),
      *(cls.__name__ for cls in _formats.FORMATS),
  }
  with pytest.raises(
      AttributeError, match="'gemma4_lora.quant' has no .*'Layo"
  ):
    _ = g4.quant.Layout
