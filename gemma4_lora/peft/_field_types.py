"""Types of the fields of `adapter_config.json`, checked one by one."""

from collections.abc import Mapping
import sys
from typing import Any

from etils import epath

from gemma4_lora.peft import _linear_regex

_BOOLS = ('use_rslora', 'use_dora', 'ensure_weight_tying')
# As strings, or as keys.
_EXPRESSIONS = (
    'target_modules',
    'exclude_modules',
    'layers_pattern',
    'rank_pattern',
    'alpha_pattern',
)


def check(path: epath.Path, fields: Mapping[str, Any]) -> None:
  """Checks the fields that are read.

  Args:
    path: The file's path, for messages.
    fields: What it holds.

  Raises:
    ValueError: A field is invalid; the message has its name and valid values.
  """

  def check_one(name, value, fits, takes):
    if not fits:
      raise ValueError(f'{path}: {name} takes {takes}. Got: {short(value)}')

  for name in _BOOLS:
    value = fields.get(name)
    check_one(
        name, value, value is None or isinstance(value, bool), 'true or false'
    )
  for name in ('rank_pattern', 'alpha_pattern'):
    value = fields.get(name)
    check_one(
        name, value, value is None or isinstance(value, dict), 'an object'
    )
  for name in ('target_modules', 'exclude_modules', 'layers_pattern'):
    value = fields.get(name)
    fits = value is None or isinstance(value, str) or _is_list(value, str)
    check_one(name, value, fits, 'a string or a list of strings')
  for name in ('target_parameters', 'modules_to_save'):
    value = fields.get(name)
    check_one(
        name, value, value is None or _is_list(value, str), 'a list of strings'
    )
  layers = fields.get('layers_to_transform')
  fits = layers is None or _is_int(layers) or _is_list(layers, int)
  check_one(
      'layers_to_transform', layers, fits, 'a number or a list of numbers'
  )
  dropout = fields.get('lora_dropout')
  fits = dropout is None or (_is_number(dropout) and 0 <= dropout < 1)
  check_one('lora_dropout', dropout, fits, 'a rate in [0, 1)')
  for name, value in (
      ('r', fields.get('r')),
      *(fields.get('rank_pattern') or {}).items(),
  ):
    fits = isinstance(value, int) and _is_int(value) and value > 0
    check_one(name, value, fits, 'a positive integer as rank')
  for name, value in (
      ('lora_alpha', fields.get('lora_alpha')),
      *(fields.get('alpha_pattern') or {}).items(),
  ):
    fits = _is_number(value) and value != 0
    check_one(name, value, fits, 'a finite number other than 0 as alpha')
  expressions = _linear_regex.Expressions()
  for name in _EXPRESSIONS:
    value = fields.get(name)
    for pattern in [value] if isinstance(value, str) else value or ():
      if isinstance(value, (str, dict)):
        try:
          expressions.add(pattern)
        except ValueError as e:
          raise ValueError(f'{path}: {name}: {short(pattern)} {e}.') from e


def _is_int(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
  """Whether it is a finite float, or an integer that fits in a float."""
  if not _is_int(value) and not isinstance(value, float):
    return False
  return abs(value) <= sys.float_info.max


def _is_list(value: Any, kind: type) -> bool:
  return isinstance(value, list) and all(
      isinstance(x, kind) and not isinstance(x, bool) for x in value
  )


def short(value: Any) -> str:
  """Returns a value for a message."""
  try:
    text = repr(value)
  except ValueError:  # It has too many digits.
    text = f'a number of {type(value).__name__}'
  return text if len(text) <= 200 else f'{text[:200]}…'
