"""Codes and scales: shapes, sizes, and how near they come."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix

from gemma4_lora import g4
from gemma4_lora.quant import _arrays
from gemma4_lora.quant import _format
from gemma4_lora.quant import _formats

_RNG = np.random.default_rng(0)


def _encoding(kind, block, *, double=False):
  cls = _formats.named(kind)
  return _format.Encoding(
      format=cls,
      block=block,
      scale_dtype=jnp.dtype(cls.default_scale_dtype),
      scales_format=g4.quant.Int8 if double else None,
  )


_ENCODINGS = [
    # Largest relative error of a random normal matrix that each may have.
    (_encoding('int8', (1, 64, 1)), 8 + 32 / 64, 0.007),
    (_encoding('int4', (1, 32, 1)), 4 + 16 / 32, 0.11),
    (_encoding('int4', (1, 4, 5)), 4 + 16 / 20, 0.1),
    (_encoding('nf4', (1, 32, 1)), 4 + 32 / 32, 0.095),
    (_encoding('nf4', (1, 16, 1), double=True), 4 + 8 / 16 + 64 / 64, 0.095),
]


@pytest.mark.parametrize(('encoding', 'bits', 'bound'), _ENCODINGS)
def test_encoding_is_read_from_the_arrays_and_bits_are_counted(
    encoding, bits, bound
):
  w = _RNG.standard_normal((3, 64, 10)).astype(np.float32)
  value = _arrays.quantize(w, encoding)
  assert _arrays.encoding_of(value) == encoding
  abstract = encoding.abstract(w.shape)
  assert _specs(value) == _specs(abstract)
  assert encoding.bits_per_entry(w.shape) == pytest.approx(bits)
  assert _arrays.nbytes(value) == pytest.approx(bits * w.size / 8, abs=1)
  error = np.asarray(_arrays.dequantize(value, jnp.float32)) - w
  assert np.linalg.norm(error) / np.linalg.norm(w) < bound


def _specs(tree):
  return jax.tree.map(lambda x: (x.shape, jnp.dtype(x.dtype)), tree)


@pytest.mark.parametrize('kind', ['int8', 'nf4'])
def test_codes_and_scales_are_those_of_qwix(kind):
  w = _RNG.standard_normal((256, 24)).astype(np.float32)
  w[:64] = 0  # A group, and more than one channel has.
  encoding = _encoding(kind, (64, 1))
  value = _arrays.quantize(w, encoding)
  want = qwix.quantize(
      jnp.asarray(w),
      'nf4' if kind == 'nf4' else jnp.int8,
      tiled_axes={0: 64, 1: 1},
  )
  np.testing.assert_array_equal(
      value['codes'].astype(int), want.qvalue.astype(int)
  )
  is_empty = np.repeat([True, False, False, False], 24).reshape(4, 24)
  np.testing.assert_array_equal(
      np.where(is_empty, 0, value['scales']), np.where(is_empty, 0, want.scale)
  )
  np.testing.assert_array_equal(
      _arrays.dequantize(value, jnp.float32), qwix.dequantize(want)
  )


@pytest.mark.parametrize(('encoding', 'bits', 'bound'), _ENCODINGS)
def test_zeros_stay_zero(encoding, bits, bound):
  del bits, bound
  value = _arrays.quantize(np.zeros((3, 64, 10), np.float32), encoding)
  assert not np.any(_arrays.dequantize(value, jnp.float32))


def test_rows_are_dequantized_after_they_were_picked():
  w = _RNG.standard_normal((12, 3, 8)).astype(np.float32)
  value = _arrays.quantize(w, _encoding('int4', (1, 1, 4)))
  whole = np.asarray(_arrays.dequantize(value, jnp.bfloat16))
  rows = jnp.asarray([[3, 3], [0, 11], [5, 7]])
  picked = _arrays.take(value, rows, jnp.bfloat16)
  np.testing.assert_array_equal(picked, whole[np.asarray(rows)])
  cut = _arrays.slice_rows(value, 5, 4, jnp.bfloat16)
  np.testing.assert_array_equal(cut, whole[5:9])
  # No array of the whole table's size, in a dtype that is no code's.
  program = jax.make_jaxpr(lambda x, i: _arrays.take(x, i, jnp.bfloat16))
  text = str(program(value, rows))
  assert 'bf16[12,3,8]' not in text
  assert 'bf16[6,3,8]' in text


def test_other_arrays_pass():
  w = jnp.ones((4, 2))
  assert _arrays.dense(w) is w
  assert not _arrays.is_quantized({'w': w})
  np.testing.assert_array_equal(_arrays.take(w, jnp.asarray([1]), None), w[:1])
  np.testing.assert_array_equal(_arrays.slice_rows(w, 1, 2, None), w[1:3])


@pytest.mark.parametrize(
    'codes',
    [
        {'codes': jnp.ones((4, 2), jnp.int16)},
        {'fp3_codes': jnp.ones((4, 2), jnp.uint4)},
        {'codes': jnp.ones((4, 2), jnp.int8), 'b_codes': jnp.ones((4, 2))},
    ],
)
def test_unknown_codes_are_an_error(codes):
  value = {**codes, 'scales': jnp.ones((1, 2))}
  known = (
      r"no format of g4.quant. It knows int8 \('codes' of dtype int8\), int4"
  )
  for function in (_arrays.encoding_of, _arrays.codes_of, _arrays.stored):
    with pytest.raises(ValueError, match=f'codes.*{known}'):
      function(value)
  with pytest.raises(ValueError, match=known):
    _arrays.dequantize(value, jnp.float32)


def test_files_have_codes_in_dtypes_of_tensorstore():
  w = _RNG.standard_normal((64, 10)).astype(np.float32)
  value = _arrays.quantize(w, _encoding('nf4', (16, 1), double=True))
  stored = _arrays.stored(value)
  assert stored['codes'].dtype == jnp.uint8
  assert _formats.held_dtype('codes', stored['codes'].dtype) == jnp.uint4
  assert _formats.held_dtype('scales', jnp.dtype('uint8')) == jnp.uint8
  np.testing.assert_array_equal(stored['codes'], value['codes'])
  assert _specs(stored['scales']) == _specs(value['scales'])
  assert _arrays.stored(w) is w
