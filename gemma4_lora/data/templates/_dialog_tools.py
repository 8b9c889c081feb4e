"""Tools in Gemma 4's own notation, as `dialog` writes it.

`dialog.Tool` itself does not work with mcp 2, which pip installs with it: it
then writes `input_schema` and types in lower case, and `dialog.ToolResponse`
raises. (dialog 1.1.0, mcp 2.3.0.)
"""

from collections.abc import Mapping
from typing import Any

from gemma4_lora.data.conversations import _conversation

RESPONSE_OPEN = '<|tool_response>'

_SCHEMA_LISTS = ('allOf', 'anyOf', 'oneOf')


def declaration(tool: Mapping[str, Any]) -> str:
  """Returns `<|tool>declaration:name{...}<tool|>`."""
  rest = {k: v for k, v in tool.items() if k not in ('name', 'title')}
  for key in ('parameters', 'response'):
    if key in rest:
      rest[key] = _normalized(rest[key])
  return f'<|tool>declaration:{tool["name"]}{_value(_sorted(rest))}<tool|>'


def call(tool_call: _conversation.ToolCall) -> str:
  """Returns `<|tool_call>call:name{...}<tool_call|>`."""
  body = _value(tool_call.arguments)
  return f'<|tool_call>call:{tool_call.name}{body}<tool_call|>'


def response(answer: _conversation.ToolResponse) -> str:
  """Returns `response:name{...}<tool_response|>`, after `RESPONSE_OPEN`.

  Raises:
    ValueError: It has images.
  """
  if answer.num_images:
    raise ValueError(
        f'The answer of the tool {answer.name!r} has images, for which'
        " template='dialog' has no place. Write template='transformers', or"
        ' give them in a message of the user.'
    )
  body = answer.response
  if not isinstance(body, dict):
    body = {'value': body}
  return f'response:{answer.name}{_value(body)}<tool_response|>'


def _value(value: Any) -> str:
  """Returns a value in the notation."""
  if value is None:
    return 'null'
  if isinstance(value, str):
    return f'<|"|>{value}<|"|>'
  if isinstance(value, bool):
    return 'true' if value else 'false'
  if isinstance(value, dict):
    pairs = (f'{k}:{_value(v)}' for k, v in value.items())
    return '{' + ','.join(pairs) + '}'
  if isinstance(value, list | tuple):
    return '[' + ','.join(map(_value, value)) + ']'
  if isinstance(value, float) and value.is_integer():
    return str(int(value))
  return str(value)


def _sorted(value: Any) -> Any:
  if isinstance(value, dict):
    return {k: _sorted(v) for k, v in sorted(value.items())}
  if isinstance(value, list):
    return [_sorted(v) for v in value]
  return value


def _normalized(schema: Any) -> Any:
  """Returns a JSON schema with its types in upper case."""
  if not isinstance(schema, dict):
    return schema
  schema = {k: v for k, v in schema.items() if k != '$schema'}
  for key, value in schema.items():
    if key == 'type':
      schema[key] = _upper(value)
    elif key in ('items', 'not'):
      schema[key] = _normalized(value)
    elif key == 'properties' and isinstance(value, dict):
      schema[key] = {k: _normalized(v) for k, v in value.items()}
    elif key in _SCHEMA_LISTS and isinstance(value, list):
      schema[key] = [_normalized(v) for v in value]
  return schema


def _upper(value: Any) -> Any:
  if isinstance(value, str):
    return value.upper()
  return [_upper(v) for v in value] if isinstance(value, list) else value
