"""A conversation in OpenAI's form, as servers give it to a chat template."""

from collections.abc import Sequence
import json
from typing import Any

from gemma4_lora.data.conversations import _conversation
from gemma4_lora.data.templates import _thoughts

Message = _conversation.Message
_ROLES = {'model': 'assistant'}


def messages_of(
    message: Message, parts: Sequence[_conversation.Part]
) -> list[dict[str, Any]]:
  """Returns a message, and the answers of the tools that it calls.

  Args:
    message: The message.
    parts: Those of its parts that the template sees.
  """
  number = _thoughts.num_leading(parts)
  out: dict[str, Any] = {
      'role': _ROLES.get(message.role, message.role),
      'content': _content(parts[number:], is_list=message.is_list),
  }
  if message.is_developer:
    out['role'] = 'developer'
  if number:
    text = '\n'.join(
        x.text for x in parts[:number] if isinstance(x, _conversation.Thought)
    )
    # Templates read either.
    out |= {'reasoning': text, 'reasoning_content': text}
  ids = _ids(message)
  if message.calls:
    out['tool_calls'] = [
        _call(call, i) for call, i in zip(message.calls, ids, strict=True)
    ]
  in_message = [x for x in message.responses if x.field == 'tool_responses']
  if in_message:
    out['tool_responses'] = [
        {'name': x.given_name, 'response': x.response} for x in in_message
    ]
  return [out, *_answers(message, ids)]


def tool(declared: dict[str, Any]) -> dict[str, Any]:
  """Returns a declared tool."""
  return {'type': 'function', 'function': declared}


def _content(
    parts: Sequence[_conversation.Part], *, is_list: bool
) -> str | list[dict[str, Any]]:
  if not is_list:
    return ''.join(map(_text, parts))
  entries: dict[int, list[_conversation.Part]] = {}
  for part in parts:
    item = getattr(part, 'item', max(entries, default=0))
    entries.setdefault(item, []).append(part)
  return [
      {'type': 'image'}
      if all(isinstance(part, _conversation.Image) for part in entry)
      else {'type': 'text', 'text': ''.join(map(_text, entry))}
      for entry in entries.values()
  ]


def _text(part: _conversation.Part) -> str:
  if isinstance(part, _conversation.Image):
    return _conversation.IMAGE_TAG
  if isinstance(part, _conversation.Thought):
    return f'{_thoughts.OPEN}{part.text}{_thoughts.CLOSE}'
  return part.text


def _ids(message: Message) -> list[str | None]:
  """Returns the ids of calls: the dataset's, or made up if it needs none."""
  ids = [call.id for call in message.calls]
  if all(x.field for x in message.responses):
    return ids
  return [x or f'call_{i}' for i, x in enumerate(ids)]


def _call(
    tool_call: _conversation.ToolCall, call_id: str | None
) -> dict[str, Any]:
  function = {'name': tool_call.name, 'arguments': tool_call.arguments}
  made = {'type': 'function', 'function': function}
  return made if call_id is None else made | {'id': call_id}


def _answers(
    message: Message, ids: Sequence[str | None]
) -> list[dict[str, Any]]:
  """Returns the messages of tools."""
  waiting = list(zip(message.calls, ids, strict=True))
  out = []
  for answer in message.responses:
    if answer.field == 'tool_responses':
      continue
    made: dict[str, Any] = {'role': 'tool', 'content': _said(answer)}
    if answer.field:
      named = {'tool_call_id': answer.call_id, 'name': answer.given_name}
      made |= {k: v for k, v in named.items() if v is not None}
    else:
      i = next(i for i, (x, _) in enumerate(waiting) if x.name == answer.name)
      made |= {'tool_call_id': waiting.pop(i)[1], 'name': answer.name}
    out.append(made)
  return out


def _said(answer: _conversation.ToolResponse) -> Any:
  """Returns the content of a tool's message."""
  value = answer.response
  if not answer.field and not isinstance(value, str):
    value = json.dumps(value, ensure_ascii=False)  # As clients send it.
  if answer.num_images:
    image = {'type': 'image'}
    value = [{'type': 'text', 'text': value}, *[image] * answer.num_images]
  return value
