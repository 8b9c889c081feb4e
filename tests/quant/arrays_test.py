"""Codes and scales: shapes, sizes, and how near they come."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix

from gemma4_lora import g4
from gemma4_lora.quant import _arrays
from gemma4_lora.quant import _kinds

_RNG = np.random.default_rng(0)


def _layout(kind, block, *, double=False):
  scale_dtype = jnp.dtype(_kinds.KINDS[kind].scale_dtype)
  return _kinds.Layout(
      kind=kind, block=block, scale_dtype=scale_dtype, double=double
  )


_LAYOUTS = [
    # Largest relative error of a random normal matrix that each may have.
    (_layout('int8', (1, 64, 1)), 8 + 32 / 64, 0.007),
    (_layout('int4', (1, 32, 1)), 4 + 16 / 32, 0.11),
    (_layout('int4', (1, 4, 5)), 4 + 16 / 20, 0.1),
    (_layout('nf4', (1, 32, 1)), 4 + 32 / 32, 0.095),
    (_layout('nf4', (1, 16, 1), double=True), 4 + 8 / 16 + 64 / 64, 0.095),
]


@pytest.mark.parametrize(('layout', 'bits', 'bound'), _LAYOUTS)
def test_layout_is_read_from_the_arrays_and_bits_are_counted(
    layout, bits, bound
):
  w = _RNG.standard_normal((3, 64, 10)).astype(np.float32)
  value = _arrays.quantize(w, layout)
  assert _arrays.layout_of(value) == layout
  abstract = layout.abstract(w.shape)
  assert _specs(value) == _specs(abstract)
  assert layout.bits_per_entry(w.shape) == pytest.approx(bits)
  assert g4.quant.nbytes(value) == pytest.approx(bits * w.size / 8, abs=1)
  error = np.asarray(_arrays.dequantize(value, jnp.float32)) - w
  assert np.linalg.norm(error) / np.linalg.norm(w) < bound


def _specs(tree):
  return jax.tree.map(lambda x: (x.shape, jnp.dtype(x.dtype)), tree)


@pytest.mark.parametrize('kind', ['int8', 'nf4'])
def test_codes_and_scales_are_those_of_qwix(kind):
  w = _RNG.standard_normal((256, 24)).astype(np.float32)
  w[:64] = 0  # A group, and more than one channel has.
  layout = _layout(kind, (64, 1))
  value = _arrays.quantize(w, layout)
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


@pytest.mark.parametrize(('layout', 'bits', 'bound'), _LAYOUTS)
def test_zeros_stay_zero(layout, bits, bound):
  del bits, bound
  value = _arrays.quantize(np.zeros((3, 64, 10), np.float32), layout)
  assert not np.any(_arrays.dequantize(value, jnp.float32))


def test_rows_are_dequantized_after_they_were_picked():
  w = _RNG.standard_normal((12, 3, 8)).astype(np.float32)
  value = _arrays.quantize(w, _layout('int4', (1, 1, 4)))
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


def test_unknown_codes_are_an_error():
  value = {'codes': jnp.ones((4, 2), jnp.int16), 'scales': jnp.ones((1, 2))}
  with pytest.raises(ValueError, match='int16 are of no format.*int8'):
    _arrays.layout_of(value)
