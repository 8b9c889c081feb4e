"""Contents of parts, as Google's Gemini API and Vertex AI's tuning have them."""

import dataclasses
from typing import Any

from kauldron import kd

from gemma4_lora.data.conversations import _conversation
from gemma4_lora.data.layouts import _columns
from gemma4_lora.data.layouts import _fields
from gemma4_lora.data.layouts import _message_fields
from gemma4_lora.data.layouts import _message_list
from gemma4_lora.data.layouts import _tool_fields

Columns = _columns.Columns
Conversation = _conversation.Conversation
Message = _conversation.Message

_SYSTEMS = ('systemInstruction', 'system_instruction')
# Parts by their names in JSON and in Python.
_NAMES = {
    'function_call': 'functionCall',
    'function_response': 'functionResponse',
    'inline_data': 'inlineData',
    'file_data': 'fileData',
    'mime_type': 'mimeType',
    'function_declarations': 'functionDeclarations',
    'parametersJsonSchema': 'parameters',
    'parameters_json_schema': 'parameters',
}
# Other fields that a part may have.
_BESIDE = ('thought', 'thoughtSignature', 'thought_signature', 'videoMetadata')


class Gemini(_message_list.MessageList):
  """`[{"role": "user", "parts": [{"text": "Hello"}]}, ...]`.

  Roles `user`, `model` and `function`; parts are `text` (with `thought`),
  `functionCall`, `functionResponse`, and images at `inlineData` or `fileData`,
  whose data are at `in_images`; a system text at `systemInstruction`. Names may
  be in snake case.
  """

  name = 'gemini'
  in_messages = 'contents'
  roles = {
      'user': 'user',
      'model': 'model',
      'function': 'tool',
      'tool': 'tool',
      'system': 'system',
  }

  def conversation_keys(self, columns: Columns) -> list[kd.kontext.Key]:
    return [*super().conversation_keys(columns), *_SYSTEMS]

  def tools(self, value: Any) -> tuple[dict[str, Any], ...]:
    return _tool_fields.parse_tools(_declarations(value))

  def completed(
      self, conversation: Conversation, row: Any, columns: Columns
  ) -> Conversation:
    conversation = super().completed(conversation, row, columns)
    for name in _SYSTEMS:
      given = _fields.get_optional(row, name)
      if not _fields.is_nothing(given) and columns.in_system is None:
        parts = given.get('parts') if isinstance(given, dict) else given
        parts = [{'text': parts}] if isinstance(parts, str) else parts
        item = {'role': 'system', 'parts': parts}
        message = self.parse_message(item, field=name, before=[])
        if message is not None and message.parts:
          return dataclasses.replace(
              conversation, messages=(message, *conversation.messages)
          )
    return conversation

  def parse_message(
      self, item: dict[str, Any], *, field: str, before: list[Message]
  ) -> Message | None:
    role = _message_fields.role_of(item, 'role', self.roles, field=field)
    entries = _fields.dicts(item.get('parts'), field=f'{field}.parts')
    if not entries:
      raise ValueError(f"Field '{field}.parts' has no parts.")
    parts: list[_conversation.Part] = []
    calls: list[_conversation.ToolCall] = []
    num_answers = 0
    for i, entry in enumerate(entries):
      where = f'{field}.parts[{i}]'
      kind, value, is_thought = _read(entry, field=where)
      if kind == 'functionResponse':
        _respond(value, field=where, before=before)
        num_answers += 1
      elif kind == 'functionCall':
        calls.append(_tool_fields.parse_call(value, field=where))
      elif kind == 'text' and is_thought:
        parts.append(_conversation.Thought(value))
      elif kind == 'text':
        parts += _conversation.parse_text(value, role=role, field=where)
      else:
        parts.append(_conversation.Image())
    if num_answers and num_answers == len(entries):
      return None  # They went to the message that called the tools.
    if role == 'tool':
      raise ValueError(
          f'Field {field!r} says more than what tools answered, but its role is'
          f" {item['role']!r}."
      )
    if role != 'model' and calls:
      raise ValueError(
          f"Field {field!r} has tool calls, but its role is {item['role']!r}."
      )
    return Message(
        role=role,
        parts=tuple(parts),
        calls=tuple(calls),
        weight=_message_fields.weight_of(item, field=field),
        field=field,
    )

  def message(
      self, name: str, text: str, *, num_images: int | None = None
  ) -> dict[str, Any]:
    image = {'fileData': {'mimeType': 'image/png', 'fileUri': ''}}
    return {
        'role': name,
        'parts': [image] * (num_images or 0) + [{'text': text}],
    }


def _read(entry: dict[str, Any], *, field: str) -> tuple[str, Any, bool]:
  """Returns the kind of a part, its value, and whether it is a thought.

  Raises:
    ValueError: Gemma 4 has no such part.
  """
  entry = _camel(entry)
  is_thought = bool(entry.get('thought'))
  found = {k: v for k, v in entry.items() if k not in _BESIDE}
  if len(found) == 1:
    ((kind, value),) = found.items()
    if kind == 'text':
      return kind, _fields.text(value, field=f'{field}.text'), is_thought
    if kind in ('functionCall', 'functionResponse') and isinstance(value, dict):
      return kind, value, False
    if kind in ('inlineData', 'fileData') and isinstance(value, dict):
      mime_type = str(_camel(value).get('mimeType', ''))
      if mime_type.startswith('image/'):
        return kind, value, False
  raise ValueError(
      f'Field {field!r} should be one of text, functionCall, functionResponse,'
      f' or an image at inlineData or fileData. Got: {entry!r:.200}'
  )


def _respond(
    value: dict[str, Any], *, field: str, before: list[Message]
) -> None:
  item = {'name': value.get('name'), 'tool_call_id': value.get('id')}
  item = {k: v for k, v in item.items() if v is not None}
  _tool_fields.add_response(
      item, value.get('response'), field=field, before=before
  )


def _declarations(tools: Any) -> Any:
  """Returns the functions of each tool, without Gemini's level above them."""
  if tools is None or isinstance(tools, str) and not tools.strip():
    return None
  flat = []
  for tool in _fields.dicts(tools, field='tools'):
    tool = _camel(tool)
    functions = tool.pop('functionDeclarations', None)
    if functions is None and 'name' not in tool or functions and tool:
      raise ValueError(
          "Field 'tools' has a tool that is not of functions, which Gemma 4"
          f' cannot call: {tool!r:.200}'
      )
    if functions is None:
      flat.append(tool)
    else:
      functions = _fields.dicts(functions, field='tools.functionDeclarations')
      flat += map(_camel, functions)
  return flat


def _camel(entry: dict[str, Any]) -> dict[str, Any]:
  """Returns the fields that are not None, by their names in JSON."""
  # Parquet gives each part all fields, most of them None.
  return {_NAMES.get(k, k): v for k, v in entry.items() if v is not None}
