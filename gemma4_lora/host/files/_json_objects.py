"""Reads JSON objects that others wrote."""

from collections.abc import Mapping
import json
import os
from typing import Any

from etils import epath

from gemma4_lora.host.files import _regular


def read(path: epath.Path, *, who: str = '') -> dict[str, Any]:
  """Reads a file that holds one object.

  Args:
    path: A path from `host.path`.
    who: What asks, for messages.

  Raises:
    FileNotFoundError: There is no such file.
    ValueError: See `parse`; or it is a pipe or a device.
  """
  return parse(_regular.read(path, who=who), path=path, who=who)


def parse(
    data: bytes | str, *, path: epath.PathLike, who: str = ''
) -> dict[str, Any]:
  """Returns the object that a text holds.

  Args:
    data: The text.
    path: Where it is from, for messages.
    who: What asks, for messages.

  Raises:
    ValueError: It is not JSON, not an object, or an object has a key twice; or a
      text has half of a character, which no message about it could show.
  """
  start = f'{who}: ' if who else ''
  where = f'{start}{os.fspath(path)}'
  head = data[: _regular.HEAD_BYTES]
  if isinstance(head, str):
    head = head.encode(errors='replace')
  if (other := _regular.what_else(head)) is not None:
    raise ValueError(f'{where} is no JSON: {other}')
  try:
    value = json.loads(data, object_pairs_hook=_once)
    _check_characters(data, value)
  except (ValueError, RecursionError, MemoryError) as e:
    # Also of digits without end, and of brackets.
    raise ValueError(
        f'{where} is damaged, or no JSON: {_regular.shown(str(e))}. Copy or'
        ' download it again.'
    ) from e
  if not isinstance(value, dict):
    raise ValueError(
        f'{where} is no object of JSON. Got: {_regular.shown(value)}'
    )
  return value


def field(
    values: Mapping[str, Any],
    name: str,
    kind: type | tuple[type, ...],
    *,
    path: epath.PathLike,
    who: str = '',
) -> Any:
  """Returns a field of an object.

  Args:
    values: The object.
    name: The field's name.
    kind: What it must be: `Mapping`, `list`, `str`, `int`, … No bool is an int.
    path: Where the object is from, for messages.
    who: What asks, for messages.

  Raises:
    ValueError: It is missing, or has another type.
  """
  start = f'{who}: ' if who else ''
  value = values.get(name)
  kinds = kind if isinstance(kind, tuple) else (kind,)
  is_bool = isinstance(value, bool) and bool not in kinds
  if is_bool or not isinstance(value, kinds):
    names = ' or '.join(x.__name__ for x in kinds)
    raise ValueError(
        f'{start}{os.fspath(path)}: {name} must be of type {names}. Got:'
        f' {_regular.shown(value) if name in values else "nothing"}'
    )
  return value


def _check_characters(data: bytes | str, value: Any) -> None:
  """Raises ValueError for half of a character: a surrogate alone."""
  has_escape = b'\\u' in data if isinstance(data, bytes) else '\\u' in data
  if has_escape or not data.isascii():
    json.dumps(value, ensure_ascii=False).encode()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  values = dict(pairs)
  if len(values) < len(pairs):
    seen = set()
    twice = next(k for k, _ in pairs if k in seen or seen.add(k))
    raise ValueError(f'the key {_regular.shown(twice)} stands there twice')
  return values
