"""Messages of from and value, as ShareGPT has them."""

import dataclasses
from typing import Any

from gemma4_lora.data.conversations import _conversation
from gemma4_lora.data.layouts import _fields
from gemma4_lora.data.layouts import _message_fields
from gemma4_lora.data.layouts import _message_list
from gemma4_lora.data.layouts import _tool_fields

Message = _conversation.Message


class ShareGpt(_message_list.MessageList):
  """`[{"from": "human", "value": "Hello"}, ...]`.

  `system`, `human`, `gpt`, `function_call` and `observation`; `tool_calls` of
  `gpt`, and all that says how a message is trained, as in `'messages'`.
  """

  name = 'sharegpt'
  in_messages = 'conversations'
  # A call is a message of its own, of the model.
  roles = {
      'system': 'system',
      'human': 'user',
      'user': 'user',
      'gpt': 'model',
      'chatgpt': 'model',
      'assistant': 'model',
      'model': 'model',
      'function_call': 'call',
      'tool_call': 'call',
      'observation': 'tool',
      'function_response': 'tool',
      'tool': 'tool',
  }

  def parse_message(
      self, item: dict[str, Any], *, field: str, before: list[Message]
  ) -> Message | None:
    role = _message_fields.role_of(item, 'from', self.roles, field=field)
    calls = () if role == 'call' else _tool_fields.calls_of(item, field=field)
    value = _message_fields.content_of(item, 'value', field=field)
    if value is None and not calls:
      what = "None as 'value'" if 'value' in item else "no 'value'"
      raise ValueError(
          f'Field {field!r} has {what}. Its fields are: {list(item)}.'
      )
    if role == 'tool':
      _tool_fields.add_response(item, value, field=field, before=before)
      return None
    if role != 'model' and calls:
      raise ValueError(
          f"Field {field!r} has tool calls, but is from {item['from']!r}."
      )
    weight = _message_fields.weight_of(item, field=field)
    if role == 'call':
      return _calls(value, field=field, weight=weight, before=before)
    parts = _message_fields.parts_of(value, role=role, field=f'{field}.value')
    thoughts = _message_fields.thoughts_of(item, role=role)
    return Message(
        role=role,
        parts=(*thoughts, *parts),
        calls=calls,
        weight=weight,
        field=field,
    )

  def message(
      self, name: str, text: str, *, num_images: int | None = None
  ) -> dict[str, Any]:
    tags = _conversation.IMAGE_TAG * (num_images or 0)
    return {'from': name, 'value': tags + text}


def _calls(
    value: Any, *, field: str, weight: float, before: list[Message]
) -> Message | None:
  """Returns the message of one call or of a list of them, as JSON.

  None if they were added to calls right before, which run beside them.
  """
  where = f'{field}.value'
  calls = value
  if isinstance(value, str):
    calls = _fields.from_json(value, field=where)
  calls = calls if isinstance(calls, list) else [calls]
  parsed = tuple(_tool_fields.parse_call(call, field=where) for call in calls)
  last = before[-1] if before else None
  if last and last.calls and not last.responses and last.weight == weight:
    before[-1] = dataclasses.replace(last, calls=(*last.calls, *parsed))
    return None
  return Message(role='model', calls=parsed, weight=weight, field=field)
