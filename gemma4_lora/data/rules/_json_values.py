"""Refuses values in arguments and answers that JSON does not have."""

import math
from typing import Any

from gemma4_lora.data.conversations import _conversation
from gemma4_lora.data.rows import _short

_SCALARS = (type(None), bool, int, str)


def check(conversation: _conversation.Conversation) -> None:
  """Raises for a date, NaN or an array in a call, an answer or a tool.

  A template would write what Python prints for it, and no server sends that.

  Raises:
    ValueError: There is one, or a key that is no text.
  """
  for i, tool in enumerate(conversation.tools):
    _check(tool, f'tools[{i}]')
  for message in conversation.messages:
    field = message.field or message.role
    for call in message.calls:
      _check(call.arguments, f'{field}, arguments of {call.name}')
    for answer in message.responses:
      _check(answer.response, f'{field}, answer of {answer.name}')


def _check(value: Any, field: str) -> None:
  if isinstance(value, _SCALARS):
    return
  if isinstance(value, dict):
    for key, inner in value.items():
      if not isinstance(key, str):
        raise ValueError(
            f'Field {field!r} has the key {_short.short(key)}, and keys of JSON'
            ' are texts.'
        )
      _check(inner, f'{field}.{key}')
  elif isinstance(value, list | tuple):
    for i, inner in enumerate(value):
      _check(inner, f'{field}[{i}]')
  elif not isinstance(value, float) or not math.isfinite(value):
    raise ValueError(
        f'Field {field!r} is {_short.short(value)}, a {type(value).__name__},'
        ' which JSON does not have. Write it as a text, a number or a list.'
    )
