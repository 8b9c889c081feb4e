"""Items of OpenAI's Responses API."""

import dataclasses
from typing import Any

from kauldron import kd

from gemma4_lora.data.conversations import _conversation
from gemma4_lora.data.layouts import _columns
from gemma4_lora.data.layouts import _fields
from gemma4_lora.data.layouts import _message_fields
from gemma4_lora.data.layouts import _message_list
from gemma4_lora.data.layouts import _messages
from gemma4_lora.data.layouts import _tool_fields

Columns = _columns.Columns
Conversation = _conversation.Conversation
Message = _conversation.Message

_OUTPUT, _INSTRUCTIONS = 'output', 'instructions'


class Responses(_message_list.MessageList):
  """items of OpenAI's Responses API, at `input` and `output`.

  Messages, whose parts are `input_text`, `output_text` and `input_image`;
  `reasoning`, `function_call` and `function_call_output`; a system text at
  `instructions`.
  """

  name = 'responses'
  in_messages = 'input'
  roles = _messages.Messages.roles

  def conversation_keys(self, columns: Columns) -> list[kd.kontext.Key]:
    return [*super().conversation_keys(columns), _OUTPUT, _INSTRUCTIONS]

  def tools(self, value: Any) -> tuple[dict[str, Any], ...]:
    return _tool_fields.parse_tools(_functions(value))

  def parse(self, row: Any, columns: Columns) -> Conversation:
    key = self._key(columns)
    messages: list[Message] = []
    text = _fields.get_optional(row, _INSTRUCTIONS)
    if not _fields.is_nothing(text) and columns.in_system is None:
      item = {'role': 'system', 'content': text}
      self._add(item, field=_INSTRUCTIONS, before=messages)
    columns_of = {
        key: ('user', _fields.get(row, key)),
        _OUTPUT: ('assistant', _fields.get_optional(row, _OUTPUT)),
    }
    for name, (role, value) in columns_of.items():
      if isinstance(value, str) and not value.lstrip().startswith(('[', '{')):
        value = [{'role': role, 'content': value}]
      for i, item in enumerate(
          [] if _fields.is_nothing(value) else _fields.dicts(value, field=name)
      ):
        self._add(item, field=f'{name}[{i}]', before=messages)
    if not messages:
      raise ValueError(f'Field {key!r} has no messages.')
    return Conversation(messages=tuple(messages))

  def parse_message(
      self, item: dict[str, Any], *, field: str, before: list[Message]
  ) -> Message | None:
    kind = item.get('type') or 'message'
    if kind == 'message':
      role = _message_fields.role_of(item, 'role', self.roles, field=field)
      content = item.get('content')
      parts = _message_fields.parts_of(
          content, role=role, field=f'{field}.content'
      )
      if role == 'tool' or not parts:
        raise ValueError(f'Field {field!r} says nothing: {item!r:.200}')
      return Message(
          role=role,
          parts=tuple(parts),
          weight=_message_fields.weight_of(item, field=field),
          is_list=isinstance(content, list),
          field=field,
      )
    if kind == 'reasoning':
      # Its text may be encrypted: then the row does not have it.
      text = _texts(item.get('content'), field=f'{field}.content')
      text = text or _texts(item.get('summary'), field=f'{field}.summary')
      parts = (_conversation.Thought(text),) if text else ()
      return Message(role='model', parts=parts, field=field) if parts else None
    if kind == 'function_call':
      call = {**item, 'id': item.get('call_id')}
      call = _tool_fields.parse_call(call, field=field)
      return Message(role='model', calls=(call,), field=field)
    if kind == 'function_call_output':
      item = {'tool_call_id': item.get('call_id'), 'output': item.get('output')}
      _tool_fields.add_response(
          item, item['output'], field=field, before=before
      )
      return None
    raise ValueError(
        f"Field '{field}.type' is {kind!r}. Gemma 4 can be given message,"
        ' reasoning, function_call and function_call_output.'
    )

  def message(
      self, name: str, text: str, *, num_images: int | None = None
  ) -> dict[str, Any]:
    kind = 'output_text' if self.roles[name] == 'model' else 'input_text'
    images = [{'type': 'input_image'}] * (num_images or 0)
    return {
        'type': 'message',
        'role': name,
        'content': [*images, {'type': kind, 'text': text}],
    }

  def _name_of(self, role: str) -> str:
    return 'assistant' if role == 'model' else super()._name_of(role)

  def _add(
      self, item: dict[str, Any], *, field: str, before: list[Message]
  ) -> None:
    """Adds an item: thoughts, text and calls of the model are one message."""
    # Parquet gives each item all fields, most of them None.
    item = {k: v for k, v in item.items() if v is not None}
    message = self.parse_message(item, field=field, before=before)
    if message is None:
      return
    last = before[-1] if before else None
    if last is not None and _continues(last, message):
      before[-1] = dataclasses.replace(
          message,
          parts=(*last.parts, *message.parts),
          calls=(*last.calls, *message.calls),
          is_list=message.is_list or last.is_list,
          weight=message.weight if _said(message) else last.weight,
      )
    else:
      before.append(message)


def _continues(last: Message, message: Message) -> bool:
  """Whether an item belongs to the model's message before it."""
  if last.role != 'model' or message.role != 'model' or last.responses:
    return False
  # Calls may follow the text, and thoughts come before it.
  return bool(message.calls) or not _said(last) and not last.calls


def _said(message: Message) -> bool:
  return any(not isinstance(x, _conversation.Thought) for x in message.parts)


def _texts(entries: Any, *, field: str) -> str:
  if isinstance(entries, str):
    return entries
  if _fields.is_nothing(entries):
    return ''
  return '\n\n'.join(
      _fields.text(x['text'], field=f'{field}[{i}].text')
      for i, x in enumerate(_fields.dicts(entries, field=field))
      if not _fields.is_nothing(x.get('text'))
  )


def _functions(tools: Any) -> Any:
  """Returns the tools, which are all functions, without what only OpenAI reads."""
  if tools is None or isinstance(tools, str) and not tools.strip():
    return None
  functions = _fields.dicts(tools, field='tools')
  for tool in functions:
    if tool.get('type', 'function') != 'function':
      raise ValueError(
          "Field 'tools' has a tool that is no function, which Gemma 4 cannot"
          f' call: {tool!r:.200}'
      )
  return [{k: v for k, v in x.items() if k != 'strict'} for x in functions]
