"""Tools in Gemma 4's own notation, as `dialog` and as transformers write it.

`dialog.Tool` itself is of no use with mcp 2, which pip installs beside it: it
then writes `input_schema` and types in lower case, and `dialog.ToolResponse`
raises. (dialog 1.1.0, mcp 2.3.0.)
"""

from collections.abc import Mapping
from typing import Any

from gemma4_lora.data.conversations import _conversation

RESPONSE_OPEN = '<|tool_response>'

_SCHEMA_LISTS = ('allOf', 'anyOf', 'oneOf')


def declaration(tool: Mapping[str, Any], *, like_dialog: bool) -> str:
  """Returns `<|tool>declaration:name{...}<tool|>`."""
  rest = {k: v for k, v in tool.items() if k != 'name'}
  if like_dialog:
    rest.pop('title', None)
    for key in ('parameters', 'response'):
      if key in rest:
        rest[key] = _normalized(rest[key])
    body = _value(_sorted(rest), like_dialog=True)
  else:
    body = _template_declaration(rest)
  return f'<|tool>declaration:{tool["name"]}{body}<tool|>'


def call(tool_call: _conversation.ToolCall, *, like_dialog: bool) -> str:
  """Returns `<|tool_call>call:name{...}<tool_call|>`."""
  body = _value(tool_call.arguments, like_dialog=like_dialog)
  return f'<|tool_call>call:{tool_call.name}{body}<tool_call|>'


def response(answer: _conversation.ToolResponse, *, like_dialog: bool) -> str:
  """Returns `response:name{...}<tool_response|>`, after `RESPONSE_OPEN`."""
  body = answer.response
  if not isinstance(body, dict):
    body = {'value': body}
  text = _value(body, like_dialog=like_dialog)
  return f'response:{answer.name}{text}<tool_response|>'


def _value(value: Any, *, like_dialog: bool, quote_keys: bool = False) -> str:
  """Returns a value in the notation."""
  if isinstance(value, str):
    return f'<|"|>{value}<|"|>'
  if isinstance(value, bool):
    return 'true' if value else 'false'
  if isinstance(value, dict):
    items = value.items() if like_dialog else _dictsort(value)
    pairs = (
        (
            _value(k, like_dialog=like_dialog) if quote_keys else str(k),
            _value(v, like_dialog=like_dialog, quote_keys=quote_keys),
        )
        for k, v in items
    )
    return '{' + ','.join(f'{k}:{v}' for k, v in pairs) + '}'
  if isinstance(value, list | tuple):
    texts = (
        _value(v, like_dialog=like_dialog, quote_keys=quote_keys) for v in value
    )
    return '[' + ','.join(texts) + ']'
  if not like_dialog:
    return str(value)
  if value is None:
    return 'null'
  if isinstance(value, float) and value.is_integer():
    return str(int(value))
  return str(value)


def _dictsort(value: dict[str, Any]) -> list[tuple[str, Any]]:
  """Sorts as Jinja's filter does: without regard to case."""
  return sorted(value.items(), key=lambda item: str(item[0]).lower())


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


def _template_declaration(tool: dict[str, Any]) -> str:
  """Returns what the template writes of a tool: the keys that it knows."""
  fields = [f'description:<|"|>{tool.get("description", "")}<|"|>']
  parameters = tool.get('parameters')
  if parameters:
    inner = []
    if parameters.get('properties'):
      properties = _template_properties(parameters['properties'])
      inner.append(f'properties:{{{properties}}}')
    if parameters.get('required'):
      inner.append(f'required:{_names(parameters["required"])}')
    kind = str(parameters.get('type') or 'object')
    inner.append(f'type:<|"|>{kind.upper()}<|"|>')
    fields.append('parameters:{' + ','.join(inner) + '}')
  if 'response' in tool:
    answer = tool['response']
    inner = []
    if answer.get('description'):
      inner.append(f'description:<|"|>{answer["description"]}<|"|>')
    if str(answer.get('type', '')).upper() == 'OBJECT':
      inner.append('type:<|"|>OBJECT<|"|>')
    fields.append('response:{' + ','.join(inner) + '}')
  return '{' + ','.join(fields) + '}'


def _template_properties(properties: dict[str, Any]) -> str:
  return ','.join(
      f'{name}:{{{_template_property(value)}}}'
      for name, value in _dictsort(properties)
  )


def _template_property(value: dict[str, Any]) -> str:
  """Returns the keys of one property, in the template's order."""
  kind = value.get('type')
  kind = kind[0] if isinstance(kind, list) else kind
  kind = str(kind or '').upper()
  fields = []
  if value.get('description'):
    fields.append(f'description:<|"|>{value["description"]}<|"|>')
  if kind == 'STRING' and value.get('enum'):
    fields.append(f'enum:{_value(value["enum"], like_dialog=False)}')
  if (
      kind == 'ARRAY'
      and isinstance(value.get('items'), dict)
      and value['items']
  ):
    fields.append(f'items:{{{_template_items(value["items"])}}}')
  if value.get('nullable'):
    fields.append('nullable:true')
  if kind == 'OBJECT':
    properties = value.get('properties')
    inner = _template_properties(properties) if properties else ''
    fields.append(f'properties:{{{inner}}}')
    if value.get('required'):
      fields.append(f'required:{_names(value["required"])}')
  fields.append(f'type:<|"|>{kind}<|"|>')
  return ','.join(fields)


def _template_items(items: dict[str, Any]) -> str:
  fields = []
  for key, value in _dictsort(items):
    if value is None:
      continue
    if key == 'properties':
      text = f'{{{_template_properties(value)}}}'
    elif key == 'required':
      text = _names(value)
    elif key == 'type':
      text = _value(_upper(value), like_dialog=False)
    else:
      text = _value(value, like_dialog=False, quote_keys=True)
    fields.append(f'{key}:{text}')
  return ','.join(fields)


def _names(names: list[str]) -> str:
  return '[' + ','.join(f'<|"|>{name}<|"|>' for name in names) + ']'
