"""Digests of arrays and JSON objects, and a search for NaN."""

from collections.abc import Mapping
import json
from typing import Any

import numpy as np
import xxhash

# Key of the digest of a JSON object's other values.
_SEAL = 'seal'

# Bits of infinity without its sign, by dtype: what is above is NaN.
_INFINITY = {'bfloat16': 0x7F80, 'float16': 0x7C00, 'float32': 0x7F800000}


def digest(array: np.ndarray) -> str:
  """Returns the XXH3 hash, of 64 bits, of an array's bytes in C order.

  Args:
    array: On the host.
  """
  return xxhash.xxh3_64_hexdigest(_bytes(array))


class RowsDigest:
  """The digest of an array whose rows are read one after the other."""

  def __init__(self) -> None:
    self._hash = xxhash.xxh3_64()
    self._row: int | None = 0  # The next row; None after a gap.

  def add(self, start: int, rows: np.ndarray) -> None:
    """Takes rows in.

    Args:
      start: Which row of the array is the first of them.
      rows: Some rows.
    """
    if start == 0:  # A reader may begin again.
      self._hash.reset()
      self._row = 0
    if start != self._row:
      self._row = None
      return
    self._hash.update(_bytes(rows))
    self._row = start + len(rows)

  def of(self, num_rows: int) -> str | None:
    """Returns the digest if all rows were seen in order; else None."""
    return self._hash.hexdigest() if self._row == num_rows else None


def has_nan(array: np.ndarray, *, infinite: bool = False) -> bool:
  """Whether a float array has a NaN.

  It compares the bits as integers, whose maximum needs no extra memory: `isnan`
  of bfloat16 is slower than the disk. Arrays of integers have none.

  Args:
    array: On the host, contiguous.
    infinite: Whether infinite values count, too.
  """
  infinity = _INFINITY.get(array.dtype.name)
  if infinity is None:
    bad = ~np.isfinite(array) if infinite else np.isnan(array)
    return array.dtype.kind == 'f' and bool(bad.any())
  if not array.size:
    return False
  size = array.dtype.itemsize
  positive = array.reshape(-1).view(f'i{size}').max()
  negative = array.reshape(-1).view(f'u{size}').max()
  sign = 1 << (8 * size - 1)
  most = infinity - infinite
  return bool(positive > most or negative > most + sign)


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
  """Returns an object of JSON with a digest of itself.

  Args:
    values: JSON values.
  """
  return {**values, _SEAL: json_digest(values)}


def check_seal(values: Mapping[str, Any]) -> None:
  """Checks an object that `sealed` returned; others have nothing to check.

  Raises:
    ValueError: It is not as it was written.
  """
  rest = {k: v for k, v in values.items() if k != _SEAL}
  if _SEAL in values and values[_SEAL] != json_digest(rest):
    raise ValueError('it is not as it was written: its digest is another')


def json_digest(values: Any) -> str:
  """Returns the digest of a JSON value, in any formatting."""
  text = json.dumps(values, sort_keys=True, separators=(',', ':'))
  return xxhash.xxh3_64_hexdigest(text.encode())


def _bytes(array: np.ndarray) -> np.ndarray:
  return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
