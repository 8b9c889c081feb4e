"""What a row says of its template: whether to think, and other arguments."""

from collections.abc import Mapping
from typing import Any

from kauldron import kd

from gemma4_lora.data.layouts import _fields

_THINKING = 'enable_thinking'


def template_kwargs(
    row: Any,
    *,
    in_template_kwargs: kd.kontext.Key | None,
    in_enable_thinking: kd.kontext.Key | None,
) -> dict[str, Any]:
  """Returns the arguments of the template of a row, which may have none.

  Args:
    row: The row.
    in_template_kwargs: Key of a dict, or of one as JSON.
    in_enable_thinking: Key of a bool.

  Raises:
    ValueError: They are something else, or contradict each other.
  """
  kwargs = {}
  if (given := _optional(row, in_template_kwargs)) is not None:
    assert in_template_kwargs is not None
    kwargs = _dict(given, field=in_template_kwargs)
  if (thinks := _optional(row, in_enable_thinking)) is not None:
    if kwargs.get(_THINKING, thinks) != thinks:
      raise ValueError(
          f'Field {in_enable_thinking!r} is {thinks!r}, and'
          f' {in_template_kwargs!r} says {kwargs[_THINKING]!r}. Keep one.'
      )
    kwargs[_THINKING] = thinks
  if _THINKING in kwargs and not isinstance(kwargs[_THINKING], bool):
    raise ValueError(
        f'{_THINKING!r} of the row should be True or False. Got:'
        f' {_fields.short(kwargs[_THINKING])}'
    )
  return kwargs


def _dict(value: Any, *, field: str) -> dict[str, Any]:
  """Returns a dict without the nulls that datasets fill in."""
  if isinstance(value, str):
    value = _fields.from_json(value, field=field) if value.strip() else {}
  if not isinstance(value, Mapping):
    raise ValueError(
        f'Field {field!r} should be a dict of arguments of the chat template.'
        f' Got: {_fields.short(value)}'
    )
  return {k: v for k, v in value.items() if v is not None}


def _optional(row: Any, key: kd.kontext.Key | None) -> Any:
  """Returns the value at a key; None if there is none."""
  if key is None:
    return None
  if str(key).isidentifier():
    return _fields.get_optional(row, key)
  try:
    return _fields.get(row, key)
  except KeyError:
    return None
