"""From the fields of a row to a conversation, by the names that datasets use."""

import dataclasses
from typing import Any

from gemma4_lora.data.conversations import _conversation
from gemma4_lora.data.conversations import _fields

Message = _conversation.Message

LAYOUTS = ('prompt_response', 'messages', 'sharegpt')

_ROLES = {
    'system': 'system',
    'developer': 'system',
    'user': 'user',
    'assistant': 'model',
    'model': 'model',
    'tool': 'tool',
}
_SHAREGPT_ROLES = {
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
# Where datasets keep what the model thought; the first two are those that
# Hugging Face's template reads.
_THOUGHT_FIELDS = ('reasoning', 'reasoning_content', 'thinking')


def from_messages(
    value: Any, *, field: str, layout: str = 'messages', tools: Any = None
) -> _conversation.Conversation:
  """Returns the conversation of a list of messages.

  Args:
    value: `[{'role': 'user', 'content': 'Hello'}, ...]`, or ShareGPT's
      `[{'from': 'human', 'value': 'Hello'}, ...]`.
    field: Where it stood, for messages.
    layout: `'messages'` or `'sharegpt'`.
    tools: Declarations: OpenAI's `{'type': 'function', 'function': {...}}`, the
      inner dict alone, or MCP's with `inputSchema`.

  Raises:
    ValueError: What is wrong, and where.
  """
  items = _fields.rows(value, field=field)
  if not items:
    raise ValueError(f'Field {field!r} has no messages.')
  parse = _from_sharegpt if layout == 'sharegpt' else _from_openai
  messages: list[Message] = []
  for i, item in enumerate(items):
    message = parse(item, field=f'{field}[{i}]', before=messages)
    if message is not None:
      messages.append(message)
  return _conversation.Conversation(
      messages=tuple(messages), tools=parse_tools(tools)
  )


def from_texts(
    prompt: str, response: str, *, in_prompt: str, in_response: str
) -> _conversation.Conversation:
  """Returns the conversation of a prompt and its response."""
  user = _conversation.parse_text(prompt, role='user', field=in_prompt)
  model = _conversation.parse_text(response, role='model', field=in_response)
  return _conversation.Conversation(
      messages=(
          Message(role='user', parts=tuple(user)),
          Message(role='model', parts=tuple(model)),
      )
  )


def with_system(
    conversation: _conversation.Conversation, text: str, *, field: str
) -> _conversation.Conversation:
  """Returns the conversation after a system message.

  Raises:
    ValueError: It has one already.
  """
  if conversation.messages and conversation.messages[0].role == 'system':
    raise ValueError(
        f'Field {field!r} is a second system message: the messages begin with'
        ' one. Drop `in_system=`, or the message.'
    )
  parts = _conversation.parse_text(text, role='system', field=field)
  system = Message(role='system', parts=tuple(parts))
  return dataclasses.replace(
      conversation, messages=(system, *conversation.messages)
  )


def parse_tools(tools: Any) -> tuple[dict[str, Any], ...]:
  """Returns each tool as `{'name', 'description', 'parameters', ...}`."""
  if tools is None or (isinstance(tools, str) and not tools.strip()):
    return ()
  parsed = []
  for i, tool in enumerate(_fields.rows(tools, field='tools')):
    tool = tool.get('function', tool)
    if isinstance(tool, str):
      tool = _fields.from_json(tool, field=f'tools[{i}].function')
    tool = {k: v for k, v in tool.items() if v is not None and k != 'type'}
    if not isinstance(tool.get('name'), str):
      raise ValueError(f"Field 'tools[{i}]' has no 'name': {tool!r:.200}")
    for ours, mcp in (
        ('parameters', 'inputSchema'),
        ('response', 'outputSchema'),
    ):
      if mcp in tool:
        tool[ours] = tool.pop(mcp)
      if isinstance(tool.get(ours), str):
        tool[ours] = _fields.from_json(tool[ours], field=f'tools[{i}].{ours}')
    parsed.append(tool)
  return tuple(parsed)


def _from_openai(
    item: dict[str, Any], *, field: str, before: list[Message]
) -> Message | None:
  """Returns a message; None if it went into the one before."""
  role = _role(item, 'role', _ROLES, field=field)
  content = item.get('content')
  if role == 'tool':
    _add_response(item, content, field=field, before=before)
    return None
  calls = tuple(
      _call(call, field=f'{field}.tool_calls[{i}]')
      for i, call in enumerate(item.get('tool_calls') or ())
  )
  responses = tuple(
      _conversation.ToolResponse(str(x.get('name') or 'unknown'), x['response'])
      for x in item.get('tool_responses') or ()
  )
  if role != 'model' and (calls or responses):
    raise ValueError(
        f"Field {field!r} has tool calls, but its role is {item['role']!r}."
    )
  parts = _parts(content, role=role, field=f'{field}.content')
  if not parts and not calls and not responses and 'content' not in item:
    raise ValueError(
        f"Field {field!r} has no 'content', and no tool calls either. Its"
        f' fields are: {list(item)}.'
    )
  return Message(
      role=role,
      parts=(*_thoughts(item, role=role), *parts),
      calls=calls,
      responses=responses,
      weight=_weight(item, field=field),
      is_list=isinstance(content, list),
  )


def _from_sharegpt(
    item: dict[str, Any], *, field: str, before: list[Message]
) -> Message | None:
  """Returns a message; None if it went into the one before."""
  role = _role(item, 'from', _SHAREGPT_ROLES, field=field)
  if 'value' not in item:
    raise ValueError(
        f"Field {field!r} has no 'value'. Its fields are: {list(item)}."
    )
  value = item['value']
  if role == 'tool':
    _add_response(item, value, field=field, before=before)
    return None
  weight = _weight(item, field=field)
  if role == 'call':
    call = _fields.from_json(value, field=f'{field}.value')
    calls = call if isinstance(call, list) else [call]
    return Message(
        role='model',
        calls=tuple(_call(c, field=f'{field}.value') for c in calls),
        weight=weight,
    )
  parts = _parts(value, role=role, field=f'{field}.value')
  thoughts = _thoughts(item, role=role)
  return Message(role=role, parts=(*thoughts, *parts), weight=weight)


def _role(
    item: dict[str, Any], key: str, roles: dict[str, str], *, field: str
) -> str:
  role = item.get(key)
  if role in roles:
    return roles[role]
  if role is None:
    raise ValueError(
        f'Field {field!r} has no {key!r}. Its fields are: {list(item)}. Is'
        ' `layout=` the right one?'
    )
  raise ValueError(
      f"Field '{field}.{key}' is {role!r}, which is none of {list(roles)}."
      f'{_fields.close_match(role, roles)}'
  )


def _weight(item: dict[str, Any], *, field: str) -> float:
  weight = item.get('weight')
  if weight is None:
    return 1.0
  if not isinstance(weight, int | float) or not 0 <= weight < float('inf'):
    raise ValueError(
        f"Field '{field}.weight' should be a number that is not negative. Got:"
        f' {weight!r}'
    )
  return float(weight)


def _thoughts(
    item: dict[str, Any], *, role: str
) -> tuple[_conversation.Thought, ...]:
  if role != 'model':
    return ()
  for name in _THOUGHT_FIELDS:
    if item.get(name):
      thought = _fields.text(item[name], field=name)
      return (_conversation.Thought(thought),)
  return ()


def _parts(content: Any, *, role: str, field: str) -> list[Any]:
  """Returns the parts of a text, or of a list of texts and images."""
  if content is None:
    return []
  if isinstance(content, str):
    return _conversation.parse_text(content, role=role, field=field)
  if not isinstance(content, list):
    _fields.text(content, field=field)  # Raises.
  parts = []
  for i, part in enumerate(content):
    where = f'{field}[{i}]'
    if isinstance(part, str):
      part = {'type': 'text', 'text': part}
    kind = part.get('type') if isinstance(part, dict) else None
    if kind == 'text':
      text = _fields.text(part.get('text'), field=f'{where}.text')
      parts += _conversation.parse_text(text, role=role, field=where, item=i)
    elif kind in ('image', 'image_url'):
      parts.append(_conversation.Image(i))
    else:
      raise ValueError(
          f"Field {where!r} should be {{'type': 'text', 'text': ...}} or"
          f" {{'type': 'image'}}. Got: {part!r:.200}"
      )
  return parts


def _call(call: Any, *, field: str) -> _conversation.ToolCall:
  """Returns a call, its arguments read from JSON if they are text."""
  function = call.get('function', call) if isinstance(call, dict) else {}
  name = function.get('name')
  if not isinstance(name, str):
    raise ValueError(
        f"Field {field!r} should be a call, {{'function': {{'name': ...,"
        f" 'arguments': {{...}}}}}}. Got: {call!r:.200}"
    )
  arguments = function.get('arguments') or {}
  if isinstance(arguments, str):
    arguments = _fields.from_json(arguments, field=f'{field}.arguments')
  if not isinstance(arguments, dict):
    raise ValueError(
        f"Field '{field}.arguments' should be a dict. Got: {arguments!r:.200}"
    )
  return _conversation.ToolCall(name, arguments, id=call.get('id'))


def _add_response(
    item: dict[str, Any], content: Any, *, field: str, before: list[Message]
) -> None:
  """Adds a tool's answer to the message that called it."""
  if not before or not before[-1].calls:
    raise ValueError(
        f"Field {field!r} is a tool's answer, but the message before it calls"
        ' no tool.'
    )
  message = before[-1]
  name = item.get('name') or _called(item.get('tool_call_id'), message)
  if name is None and len(message.calls) > len(message.responses):
    # Answers come in the order of the calls.
    name = message.calls[len(message.responses)].name
  if name is None:
    raise ValueError(
        f"Field {field!r} is a tool's answer, and does not say of which: give"
        " it a 'name'."
    )
  if isinstance(content, list) and all(
      isinstance(x, dict) and x.get('type') == 'text' for x in content
  ):
    content = ''.join(x.get('text') or '' for x in content)
  response = _conversation.ToolResponse(str(name), content)
  before[-1] = dataclasses.replace(
      message, responses=(*message.responses, response)
  )


def _called(call_id: Any, message: Message) -> str | None:
  names = {call.id: call.name for call in message.calls if call.id is not None}
  return names.get(call_id)
