"""Tools in the fields of a row: declared, called and answered."""

import dataclasses
from typing import Any

from gemma4_lora.data.conversations import _conversation
from gemma4_lora.data.layouts import _fields
from gemma4_lora.data.rows import _schemas

Message = _conversation.Message

# Our field of each schema, and its names: MCP's, and Anthropic's.
_SCHEMAS = {
    'parameters': ('parameters', 'inputSchema', 'input_schema', 'args'),
    'response': ('response', 'outputSchema', 'output_schema'),
}
_SCHEMA_NAMES = frozenset(sum(_SCHEMAS.values(), ()))
# The arguments of a call: OpenAI's name, Llama's, Anthropic's, Gemini's.
_ARGUMENTS = ('arguments', 'parameters', 'input', 'args')
# Dicts beside a call that say nothing of what is called.
_NOT_READ = (
    'cache_control',
    'caller',
    'extra_content',
    'metadata',
    'provider_specific_fields',
)


def parse_tools(tools: Any) -> tuple[dict[str, Any], ...]:
  """Returns each declared tool as `{'name', 'description', 'parameters', ...}`.

  Args:
    tools: OpenAI's `{'type': 'function', 'function': {...}}`, the inner dict
      alone, MCP's with `inputSchema`, or Anthropic's with `input_schema`;
      that as JSON; or nothing.

  Raises:
    ValueError: They are something else.
  """
  if tools is None or (isinstance(tools, str) and not tools.strip()):
    return ()
  return tuple(
      _parse_tool(tool, field=f'tools[{i}]')
      for i, tool in enumerate(_fields.dicts(tools, field='tools'))
  )


def parse_call(call: Any, *, field: str) -> _conversation.ToolCall:
  """Returns a call, its arguments read from JSON if they are text.

  Raises:
    ValueError: It has no name; or its arguments are no dict, given twice or
      under a name that is not known.
  """
  outer = call if isinstance(call, dict) else {}
  # Datasets fill in None for fields of other rows.
  function = outer if outer.get('function') is None else outer['function']
  function = function if isinstance(function, dict) else {}
  name = function.get('name')
  if not isinstance(name, str) or not name:
    raise ValueError(
        f"Field {field!r} should be a call, {{'function': {{'name': ...,"
        f" 'arguments': {{...}}}}}}. Got: {_fields.short(call, 200)}"
    )
  key = _arguments_key(outer, function, field=field)
  arguments = function.get(key)
  is_json = isinstance(arguments, str)
  if is_json and arguments.strip():
    arguments = _fields.from_json(arguments, field=f'{field}.{key}')
  if arguments is None or isinstance(arguments, str) and not arguments:
    arguments = {}
  if not isinstance(arguments, dict):
    raise ValueError(
        f"Field '{field}.{key}' should be a dict. Got:"
        f' {_fields.short(arguments, 200)}'
    )
  return _conversation.ToolCall(
      name, _fields.lists(arguments), id=outer.get('id'), is_json=is_json
  )


def calls_of(
    item: dict[str, Any], *, field: str
) -> tuple[_conversation.ToolCall, ...]:
  """Returns the calls of a message: `tool_calls`, or OpenAI's older field.

  Raises:
    ValueError: One is none; or both fields have some.
  """
  calls, older = item.get('tool_calls'), item.get('function_call')
  if _fields.is_nothing(older):
    if _fields.is_nothing(calls):
      return ()
    where = f'{field}.tool_calls'
    if isinstance(calls, dict) and ('function' in calls or 'name' in calls):
      if not isinstance(calls.get('function') or calls.get('name'), list):
        calls = [calls]  # One call, without the list around it.
    return tuple(
        parse_call(call, field=f'{where}[{i}]')
        for i, call in enumerate(_entries(calls, field=where))
    )
  if not _fields.is_nothing(calls):
    raise ValueError(
        f"Field {field!r} has both 'tool_calls' and a 'function_call'. Keep one."
    )
  return (parse_call(older, field=f'{field}.function_call'),)


def responses_of(
    item: dict[str, Any], *, field: str
) -> tuple[_conversation.ToolResponse, ...]:
  """Returns the answers in the message that called the tools.

  Raises:
    ValueError: One is none.
  """
  answers = item.get('tool_responses')
  if _fields.is_nothing(answers):
    return ()
  where = f'{field}.tool_responses'
  found = []
  for i, answer in enumerate(_entries(answers, field=where)):
    if not isinstance(answer, dict) or answer.get('response') is None:
      raise ValueError(
          f"Field '{where}[{i}]' should be {{'name': ..., 'response': ...}}."
          f' Got: {_fields.short(answer, 200)}'
      )
    found.append(
        _conversation.ToolResponse(
            '',
            answer['response'],
            given_name=answer.get('name'),
            field='tool_responses',
        )
    )
  return tuple(found)


def add_response(
    item: dict[str, Any],
    content: Any,
    *,
    field: str,
    before: list[Message],
    of: str = '',
) -> None:
  """Adds a tool's answer to the message that called it, the last before.

  The call that it answers is found later, from the whole conversation.

  Args:
    item: The answer, as the dataset has it.
    content: Its content.
    field: Its place, for errors.
    before: The messages before.
    of: See `ToolResponse.field`.

  Raises:
    ValueError: That message is not the model's; or the answer is missing.
  """
  if not before or before[-1].role != _conversation.MODEL:
    raise ValueError(
        f"Field {field!r} is a tool's answer, but the message before it calls"
        ' no tool.'
    )
  if content is None:
    raise ValueError(
        f"Field {field!r} is a tool's answer that says nothing: its content is"
        ' None.'
    )
  name, call_id = item.get('name'), item.get('tool_call_id')
  for key, value in (('name', name), ('tool_call_id', call_id)):
    if value is not None and not isinstance(value, str | int):
      raise ValueError(
          f"Field '{field}.{key}' should be text. Got: {_fields.short(value)}"
      )
  text, num_images = _split_parts(content)
  response = _conversation.ToolResponse(
      '',
      text,
      num_images=num_images,
      call_id=call_id,
      given_name=name,
      field=of,
  )
  before[-1] = dataclasses.replace(
      before[-1], responses=(*before[-1].responses, response)
  )


def _parse_tool(tool: dict[str, Any], *, field: str) -> dict[str, Any]:
  if tool.get('function') is not None:
    tool = tool['function']
  if isinstance(tool, str):
    tool = _fields.from_json(tool, field=f'{field}.function')
  if not isinstance(tool, dict):
    raise ValueError(
        f"Field '{field}.function' should be a dict. Got: {_fields.short(tool)}"
    )
  tool = {k: v for k, v in tool.items() if v is not None and k != 'type'}
  tool.pop('function', None)
  for key, value in tool.items():
    if key not in _SCHEMA_NAMES:
      tool[key] = _schemas.without_nulls(value, None, None)
  if not isinstance(tool.get('name'), str) or not tool['name']:
    raise ValueError(
        f"Field '{field}' has no 'name': {_fields.short(tool, 200)}"
    )
  for ours, names in _SCHEMAS.items():
    given = {name: tool.pop(name) for name in names if name in tool}
    if not given:
      continue
    name = _only_one(given, field=field)
    if name == 'args' and not _is_schema(given[name]):
      raise ValueError(
          f"Field '{field}.args' is not read: it is no JSON schema of an object."
          ' Write the arguments of the tool as a schema at'
          f" 'parameters'. Got: {_fields.short(given[name], 200)}"
      )
    where = f'{field}.{name}'
    tool[ours] = given[name]
    if isinstance(tool[ours], str):
      tool[ours] = _fields.from_json(tool[ours], field=where)
    read = _schemas.parameters if ours == 'parameters' else _schemas.cleaned
    tool[ours] = read(tool[ours], field=where)
  return tool


def _arguments_key(
    outer: dict[str, Any], function: dict[str, Any], *, field: str
) -> str:
  """Returns the name of the arguments of a call.

  Raises:
    ValueError: There are several, or a dict under another name.
  """
  given = {k: function[k] for k in _ARGUMENTS if function.get(k) is not None}
  others = {k: v for k, v in function.items() if k not in _ARGUMENTS}
  if function is not outer:
    others |= outer
  for key, value in others.items():
    if key == 'function' or key in _NOT_READ or not isinstance(value, dict):
      continue
    if not _fields.is_nothing(value):
      raise ValueError(
          f'Field {field!r} has a dict at {key!r}, which is not read. The'
          " arguments of a call belong beside its name, at 'arguments'. Got:"
          f' {_fields.short(outer, 200)}'
      )
  return _only_one(given, field=field) if given else 'arguments'


def _only_one(given: dict[str, Any], *, field: str) -> str:
  """Returns the name whose value says something, the first if none does.

  Raises:
    ValueError: Several do.
  """
  said = [key for key, x in given.items() if not _fields.is_nothing(x)]
  if len(said) > 1:
    raise ValueError(f'Field {field!r} has each of {said}. Keep one.')
  return said[0] if said else next(iter(given))


def _is_schema(value: Any) -> bool:
  """Whether this is the JSON schema of an object, not a dict of properties."""
  if isinstance(value, str):
    value = _fields.from_json(value, field='args')
  if not isinstance(value, dict) or _fields.is_nothing(value):
    return value == {}
  return (
      value.get('type') == 'object'
      or isinstance(value.get('properties'), dict)
      and isinstance(value.get('type', 'object'), str)
  )


def _entries(value: Any, *, field: str) -> list[Any]:
  """Returns a list, from one, from JSON, or from a dict of lists."""
  if isinstance(value, list):
    return value
  return _fields.dicts(value, field=field)


def _split_parts(content: Any) -> tuple[Any, int]:
  """Returns the text of a list of parts, and how many images it has.

  Any other value is the tool's answer, unchanged.
  """
  kinds = ('text', 'image', 'image_url')
  if not isinstance(content, list) or not all(
      isinstance(x, dict) and x.get('type') in kinds for x in content
  ):
    return content, 0
  texts = [x.get('text') or '' for x in content if x['type'] == 'text']
  return ''.join(texts), len(content) - len(texts)
