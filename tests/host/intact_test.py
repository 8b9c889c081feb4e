"""Digests, NaN and seals, against NumPy and by breaking them."""

import json

import ml_dtypes
import numpy as np
import pytest

from gemma4_lora.host import _intact

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def test_each_bit_counts_and_layout_in_memory_does_not():
  array = np.arange(24, dtype=np.float32).reshape(4, 6)
  digest = _intact.digest(array)
  assert _intact.digest(np.asfortranarray(array)) == digest
  for i in range(0, 24 * 32, 37):
    bits = array.copy()
    bits.reshape(-1).view(np.uint32)[i // 32] ^= np.uint32(1 << i % 32)
    assert _intact.digest(bits) != digest, i
  assert _intact.digest(array[::-1]) != digest


def test_rows_in_order_have_the_digest_of_the_whole():
  array = np.arange(40).reshape(10, 4)
  rows = _intact.RowsDigest()
  rows.add(0, array[:7])  # Somebody looks, and then begins.
  rows.add(0, array[:3])
  rows.add(3, array[3:10])
  assert rows.of(10) == _intact.digest(array)
  rows.add(0, array[:3])
  assert rows.of(10) is None
  rows.add(4, array[4:])  # One is left out.
  assert rows.of(10) is None


@pytest.mark.parametrize('dtype', [_BFLOAT16, np.float16, np.float32, float])
def test_nan_of_either_sign_is_found_and_nothing_else(dtype):
  array = np.array([0.0, -0.0, 1e-30, -3.5, np.inf, -np.inf], dtype)
  assert not _intact.has_nan(array)
  assert not _intact.has_nan(array[:0])
  for sign in (1, -1):
    bad = array.copy()
    bad[3] = np.copysign(np.asarray(np.nan, dtype), np.asarray(sign, dtype))
    assert np.isnan(bad[3]) and _intact.has_nan(bad.reshape(2, 3))


def test_integers_have_no_nan():
  assert not _intact.has_nan(np.array([-1, 0x7FFF], np.int16))


def test_a_seal_breaks_with_any_value():
  values = {'b': [1, 2.5, 'x'], 'a': {'c': None}}
  text = json.dumps(_intact.sealed(values), indent=2)
  _intact.check_seal(json.loads(text))
  _intact.check_seal(values)  # From before there were any.
  for old, new in (('2.5', '2.6'), ('"x"', '"y"'), ('"c"', '"d"')):
    with pytest.raises(ValueError, match='digest is another'):
      _intact.check_seal(json.loads(text.replace(old, new)))
