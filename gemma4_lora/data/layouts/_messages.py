"""Messages of role and content, as OpenAI and Hugging Face have them."""

from typing import Any

from gemma4_lora.data.conversations import _conversation
from gemma4_lora.data.layouts import _message_fields
from gemma4_lora.data.layouts import _message_list
from gemma4_lora.data.layouts import _tool_fields

Message = _conversation.Message


class Messages(_message_list.MessageList):
  """`[{"role": "user", "content": "Hello"}, ...]`.

  Roles `system` (`developer`), `user`, `assistant` (`model`) and `tool`
  (`function`); content is text or a list of `{"type": "text"}` and
  `{"type": "image"}`, or a text at `refusal`; `tool_calls` (`function_call`) as
  OpenAI has them, or Hugging Face's `tool_responses`; thoughts at `reasoning`,
  `reasoning_content` or `thinking`; a number at `weight`. A message of the model
  with `train`, `training` or `loss` False, or with `masked` True, is not trained.
  """

  name = 'messages'
  in_messages = 'messages'
  roles = {
      'system': 'system',
      'developer': 'system',
      'user': 'user',
      'assistant': 'model',
      'model': 'model',
      'tool': 'tool',
      'function': 'tool',
  }

  def parse_message(
      self, item: dict[str, Any], *, field: str, before: list[Message]
  ) -> Message | None:
    role = _message_fields.role_of(item, 'role', self.roles, field=field)
    content = item.get('content')
    if role == 'tool':
      _tool_fields.add_response(
          item, content, field=field, before=before, of='content'
      )
      return None
    calls = _tool_fields.calls_of(item, field=field)
    responses = _tool_fields.responses_of(item, field=field)
    if role != 'model' and (calls or responses):
      raise ValueError(
          f"Field {field!r} has tool calls, but its role is {item['role']!r}."
      )
    content = _message_fields.content_of(item, 'content', field=field)
    parts = _message_fields.parts_of(
        content, role=role, field=f'{field}.content'
    )
    if content is None and not calls and not responses:
      what = "None as 'content'" if 'content' in item else "no 'content'"
      raise ValueError(
          f'Field {field!r} has {what}, and no tool calls either. Its fields are:'
          f' {list(item)}.'
      )
    return Message(
        role=role,
        parts=(*_message_fields.thoughts_of(item, role=role), *parts),
        calls=calls,
        responses=responses,
        weight=_message_fields.weight_of(item, field=field),
        is_developer=item['role'] == 'developer',
        is_list=isinstance(content, list),
        field=field,
    )

  def message(
      self, name: str, text: str, *, num_images: int | None = None
  ) -> dict[str, Any]:
    if num_images is None:
      return {'role': name, 'content': text}
    # Each entry has all fields, as Parquet gives them.
    content: list[Any] = [
        {'type': 'image', 'text': None, 'index': i} for i in range(num_images)
    ]
    content.append({'type': 'text', 'text': text, 'index': None})
    return {'role': name, 'content': content}
