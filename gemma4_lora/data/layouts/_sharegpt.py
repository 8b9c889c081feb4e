"""Messages of from and value, as ShareGPT has them."""

from typing import Any

from gemma4_lora.data.conversations import _conversation
from gemma4_lora.data.layouts import _fields
from gemma4_lora.data.layouts import _message_fields
from gemma4_lora.data.layouts import _message_list
from gemma4_lora.data.layouts import _tool_fields

Message = _conversation.Message


class ShareGpt(_message_list.MessageList):
  """`[{"from": "human", "value": "Hello"}, ...]`.

  `system`, `human`, `gpt`, `function_call` and `observation`.
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
    if 'value' not in item:
      raise ValueError(
          f"Field {field!r} has no 'value'. Its fields are: {list(item)}."
      )
    value = item['value']
    if role == 'tool':
      _tool_fields.add_response(item, value, field=field, before=before)
      return None
    weight = _message_fields.weight_of(item, field=field)
    if role == 'call':
      return _calls(value, field=f'{field}.value', weight=weight)
    parts = _message_fields.parts_of(value, role=role, field=f'{field}.value')
    thoughts = _message_fields.thoughts_of(item, role=role)
    return Message(role=role, parts=(*thoughts, *parts), weight=weight)

  def message(
      self, name: str, text: str, *, num_images: int | None = None
  ) -> dict[str, Any]:
    tags = _conversation.IMAGE_TAG * (num_images or 0)
    return {'from': name, 'value': tags + text}


def _calls(value: Any, *, field: str, weight: float) -> Message:
  """Returns the message of one call or of a list of them, as JSON."""
  calls = _fields.from_json(value, field=field)
  calls = calls if isinstance(calls, list) else [calls]
  return Message(
      role='model',
      calls=tuple(_tool_fields.parse_call(call, field=field) for call in calls),
      weight=weight,
  )
