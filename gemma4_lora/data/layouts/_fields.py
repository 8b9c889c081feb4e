"""Reads fields of a row; errors name the field."""

from collections.abc import Iterable
from collections.abc import Mapping
import dataclasses
import functools
import json
from typing import Any

from kauldron import kd
import numpy as np

from gemma4_lora.data.conversations import _choices
from gemma4_lora.data.rows import _short

short = _short.short

_PLAIN = frozenset((str, int, float, bool, type(None)))


@dataclasses.dataclass(frozen=True)
class Broken:
  """A row that could not be read."""

  reason: str


def get(element: Any, key: kd.kontext.Key) -> Any:
  """Returns the value at `key`, as plain Python.

  Raises:
    KeyError: There is no such field.
    ValueError: The row could not be read.
  """
  value = raw(element, key)
  try:
    return plain(value)
  except UnicodeDecodeError as e:
    raise ValueError(
        f'Field {key!r} has bytes that are no UTF-8 ({e.reason} at byte'
        f' {e.start}): {short(e.object[max(e.start - 40, 0) :][:80])}'
    ) from None


def raw(element: Any, key: kd.kontext.Key) -> Any:
  """Returns the value at `key` as the dataset has it: `bytes` stay bytes.

  Raises:
    KeyError: There is no such field.
    ValueError: The row could not be read.
  """
  if isinstance(element, Broken):
    raise ValueError(element.reason)
  try:
    return _path(key).get_from(element)
  except (KeyError, AttributeError, IndexError, TypeError):
    raise KeyError(_missing(element, key)) from None


def get_optional(element: Any, name: str) -> Any:
  """Returns the value of a field as `get`; None if there is no such field."""
  if not isinstance(element, Mapping) or name not in element:
    return None
  return get(element, name)


def get_text(element: Any, key: kd.kontext.Key) -> str:
  """Returns the text at `key`, decoded if it is bytes.

  Raises:
    KeyError: There is no such field.
    ValueError: It is not text.
  """
  return text(get(element, key), field=key)


def text(value: Any, *, field: str) -> str:
  """Returns the value, if it is text.

  Raises:
    ValueError: It is not.
  """
  if not isinstance(value, str):
    raise ValueError(
        f'Field {field!r} should be text (`str` or `bytes`), but it is a'
        f' {type(value).__name__}: {short(value)}'
    )
  return value


def plain(value: Any) -> Any:
  """Returns text for bytes, lists for arrays and tuples, all the way down.

  Readers differ: TFDS gives bytes and arrays of objects, Parquet arrays of
  dicts. An array of numbers stays an array: it may be an image.
  """
  if type(value) in _PLAIN:  # Most values are.
    return value
  if isinstance(value, bytes):
    return value.decode('utf-8')
  if isinstance(value, str):
    return str(value)  # `np.str_` is one.
  if isinstance(value, np.ndarray):
    if value.ndim == 0:
      return plain(value.item())
    return [plain(x) for x in value] if value.dtype.kind in 'OSU' else value
  if isinstance(value, np.generic):
    return value.item()
  if isinstance(value, Mapping):
    return {plain(k): plain(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [plain(x) for x in value]
  return value


def lists(value: Any) -> Any:
  """Returns lists for arrays of numbers too, where none can be an image."""
  if isinstance(value, np.ndarray):
    return value.tolist()
  if isinstance(value, dict):
    return {k: lists(v) for k, v in value.items()}
  if isinstance(value, list):
    return [lists(v) for v in value]
  return value


def is_nothing(value: Any) -> bool:
  """Whether a field of a message is empty, as datasets fill it in.

  None, an empty text or list, and a dict of these.
  """
  if isinstance(value, dict):
    return all(map(is_nothing, value.values()))
  return value is None or hasattr(value, '__len__') and not len(value)


def dicts(value: Any, *, field: str) -> list[dict[str, Any]]:
  """Returns a list of dicts, from one, or from a dict of lists, or from JSON.

  TFDS and old Hugging Face datasets turn a list of dicts into a dict of lists.

  Raises:
    ValueError: It is none of these.
  """
  if isinstance(value, str):
    value = from_json(value, field=field)
  if isinstance(value, dict) and value:
    columns = {k: list(v) for k, v in value.items() if _is_list(v)}
    lengths = {len(v) for v in columns.values()}
    if len(columns) == len(value) and len(lengths) == 1:
      names = tuple(columns)
      value = [
          dict(zip(names, x, strict=True))
          for x in zip(*columns.values(), strict=True)
      ]
  if not isinstance(value, list):
    raise ValueError(
        f'Field {field!r} should be a list of dicts, but it is a'
        f' {type(value).__name__}: {short(value)}'
    )
  for i, item in enumerate(value):
    if not isinstance(item, dict):
      raise ValueError(
          f"Field '{field}[{i}]' should be a dict, but it is a"
          f' {type(item).__name__}: {short(item)}'
      )
  return value


def from_json(value: str, *, field: str) -> Any:
  """Returns the parsed text.

  Raises:
    ValueError: It is not JSON.
  """
  try:
    return json.loads(value)
  except RecursionError:
    raise ValueError(
        f'Field {field!r} is JSON that is nested too deep: {short(value)}'
    ) from None
  except ValueError as e:  # Also of numbers with thousands of digits.
    raise ValueError(
        f'Field {field!r} is a text that is not JSON ({e}): {short(value)}'
    ) from None


def without(element: Any, keys: Iterable[kd.kontext.Key]) -> Any:
  """Returns a copy of a row without the fields at `keys`.

  Its dicts and lists are new, so that transforms may change them.
  """
  paths = [_path(key).parts for key in keys]
  names = {path[0] for path in paths if len(path) == 1}
  row = {k: _copy(v) for k, v in element.items() if k not in names}
  for *parents, last in paths:
    parent = row
    for name in parents:
      parent = parent.get(name) if isinstance(parent, dict) else None
    if isinstance(parent, dict):
      parent.pop(last, None)
  return row


def put(element: Any, key: kd.kontext.Key, value: Any) -> None:
  """Sets the field at `key`."""
  if type(element) is dict and key.isidentifier():
    element[key] = value
    return
  # kontext's own error lists the fields if the parent is missing.
  kd.kontext.set_by_path(element, _path(key, kd.kontext.GlobPath), value)


# Parsing a key takes longer than reading the value.
@functools.cache
def _path(key: kd.kontext.Key, cls: Any = kd.kontext.Path) -> Any:
  return cls.from_str(key)


def _copy(value: Any) -> Any:
  if isinstance(value, dict):
    return {k: _copy(v) for k, v in value.items()}
  return [_copy(x) for x in value] if isinstance(value, list) else value


def _is_list(value: Any) -> bool:
  return isinstance(value, list | np.ndarray)


def _missing(element: Any, key: kd.kontext.Key) -> str:
  if element is None or isinstance(element, str | int | float | list):
    return (
        f'The row should be a dict of fields, but it is a'
        f' {type(element).__name__}: {short(element)}'
    )
  fields = list(kd.kontext.flatten_with_path(element))
  return (
      f'The example has no field {key!r}.{_choices.close_match(key, fields)}'
      f' Its fields are: {fields}.'
  )
