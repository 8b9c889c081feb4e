"""The fields of a fingerprint, checked once when it is read.

A seal shows damage; files of earlier versions have none.
"""

from collections.abc import Callable
from collections.abc import Mapping
import math
from typing import Any

from gemma4_lora.host.files import _regular

_Fits = Callable[[Any], bool]


def check(values: Mapping[str, Any]) -> None:
  """Checks a fingerprint as `_fingerprint.describe` makes it.

  Args:
    values: What the file holds; a run's with its index.

  Raises:
    ValueError: A field is invalid; the message names it.
  """
  for name in ('base', 'lora'):
    _one(values, name, _is_object, 'an object')
    _each(values[name], f'{name}.', 'leaves', _is_spec, 'dtype and shape')
  lora = values['lora']
  _each(lora, 'lora.', 'projections', _is_projection, 'rank, alpha and dropout')
  _one(lora, 'settings', _is_object, 'an object')
  if 'checksums' in values['base']:
    _each(values['base'], 'base.', 'checksums', _is_string, 'a string')
  for name, fits, takes in (
      ('versions', _is_string, 'a string'),
      ('digests', _is_string, 'a string'),
      ('items', _is_string, 'a string'),
      ('index', _is_bundle, 'a dtype, and path and shape of each leaf'),
  ):
    if name in values:
      _each(values, '', name, fits, takes)


def _one(box: Mapping[str, Any], name: str, fits: _Fits, takes: str) -> None:
  if not fits(box.get(name)):
    raise ValueError(
        f'{name} takes {takes}. Got: {_regular.shown(box.get(name))}'
    )


def _each(
    box: Mapping[str, Any], where: str, name: str, fits: _Fits, takes: str
) -> None:
  _one(box, name, _is_object, 'an object')
  for key, value in box[name].items():
    if not fits(value):
      raise ValueError(
          f'{where}{name}: {_regular.shown(key)} takes {takes}. Got:'
          f' {_regular.shown(value)}'
      )


def _is_object(value: Any) -> bool:
  return isinstance(value, Mapping)


def _is_string(value: Any) -> bool:
  return isinstance(value, str)


def _is_spec(value: Any) -> bool:
  """Whether it is as `['float32', [32, 4]]`."""
  return (
      isinstance(value, list)
      and len(value) == 2
      and isinstance(value[0], str)
      and _is_shape(value[1])
  )


def _is_shape(value: Any) -> bool:
  return isinstance(value, list) and all(
      type(n) is int and 0 <= n < 2**62 for n in value
  )


def _is_projection(value: Any) -> bool:
  if not isinstance(value, Mapping):
    return False
  rank, alpha, dropout = (value.get(x) for x in ('rank', 'alpha', 'dropout'))
  return (
      type(rank) is int
      and 0 < rank < 2**31
      and _is_number(alpha)
      and bool(alpha)
      and _is_number(dropout)
  )


def _is_number(value: Any) -> bool:
  return type(value) is float and math.isfinite(value) or type(value) is int


def _is_bundle(value: Any) -> bool:
  """Whether it is as `['float32', [[['layer_0', 'a'], [32, 4]], …]]`."""
  return (
      isinstance(value, list)
      and len(value) == 2
      and isinstance(value[0], str)
      and isinstance(value[1], list)
      and bool(value[1])
      and all(_is_entry(x) for x in value[1])
  )


def _is_entry(value: Any) -> bool:
  return (
      isinstance(value, list)
      and len(value) == 2
      and isinstance(value[0], list)
      and bool(value[0])
      and all(isinstance(x, str) for x in value[0])
      and _is_shape(value[1])
  )
