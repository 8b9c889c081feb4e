"""Tools as Google's chat template writes them, its oddities included.

Schemas are written exactly as the template does, brace for brace: models were
trained with that, and servers write it. So `{}` is not closed if a type is
missing, and a list of types is a Python list in upper case.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

from gemma4_lora.data.conversations import _conversation
from gemma4_lora.data.templates import _templates

RESPONSE_OPEN = '<|tool_response>'

# Keys of a schema that are not properties, if `properties` is missing.
_SCHEMA_KEYS = ('description', 'type', 'properties', 'required', 'nullable')


def declaration(tool: Mapping[str, Any], revision: _templates.Revision) -> str:
  """Returns `<|tool>declaration:name{...}<tool|>`."""
  text = f'description:{_quoted(tool.get("description", ""))}'
  if tool.get('parameters'):
    text += ',parameters:{' + _parameters(tool['parameters'], revision)
  if 'response' in tool:
    text += ',response:{'
    if description := _get(tool['response'], 'description'):
      text += f'description:{_quoted(description)},'
    if _type(tool['response']) == 'OBJECT':
      text += f'type:{_quoted("OBJECT")}}}'
  return f'<|tool>declaration:{tool["name"]}{{{text}}}<tool|>'


def call(
    tool_call: _conversation.ToolCall, revision: _templates.Revision
) -> str:
  """Returns `<|tool_call>call:name{...}<tool_call|>`."""
  body = _value(tool_call.arguments, revision)
  return f'<|tool_call>call:{tool_call.name}{body}<tool_call|>'


def response(
    answer: _conversation.ToolResponse,
    calls: Iterable[_conversation.ToolCall],
    revision: _templates.Revision,
) -> str:
  """Returns `response:name{...}<tool_response|>`, after `RESPONSE_OPEN`.

  Args:
    answer: What the tool answered.
    calls: The calls of the message that it answers.
    revision: Revision of the template.

  Raises:
    ValueError: It has images, and the revision has no place for them; or it is
      a dict or a list, which the template knows in `tool_responses` alone.
  """
  body = answer.response
  if answer.field == 'content' and body in ({}, []):
    body = ''  # The template does not see it as parts.
  if answer.field == 'content' and isinstance(body, dict | list):
    raise ValueError(
        f'The answer of the tool {answer.name!r} is a {type(body).__name__}, at which the template raises. Give'
        " it as text, as servers do, or in the model's message, at"
        f" 'tool_responses'. Got: {body!r:.200}"
    )
  if answer.num_images and not revision.images_of_tools:
    raise ValueError(
        f'The answer of the tool {answer.name!r} has images, which this revision'
        " of the template leaves out. Write template='transformers'."
    )
  if not isinstance(body, dict):
    body = {'value': body}
  text = f'response:{_name(answer, calls)}{_value(body, revision)}'
  return text + '<tool_response|>' + '<|image|>' * answer.num_images


def _name(
    answer: _conversation.ToolResponse,
    calls: Iterable[_conversation.ToolCall],
) -> str:
  """Returns the name that the template finds for an answer.

  Without ids, it is the name of the last call.
  """
  if not answer.field:
    return answer.name
  name = answer.given_name or 'unknown'
  if answer.field == 'tool_responses':
    return name
  for tool_call in calls:
    if tool_call.id == answer.call_id:
      name = tool_call.name
  return name


def _parameters(
    parameters: Mapping[str, Any], revision: _templates.Revision
) -> str:
  """Returns a schema of parameters, after its first brace."""
  text = ''
  if properties := _get(parameters, 'properties'):
    text += f'properties:{{{_properties(properties, revision)}}},'
  if required := _get(parameters, 'required'):
    text += f'required:{_names(required)},'
  if _get(parameters, 'type'):
    text += f'type:{_quoted(_type(parameters))}}}'
  return text


def _properties(
    properties: Any,
    revision: _templates.Revision,
    *,
    without: tuple[str, ...] = (),
) -> str:
  return ','.join(
      f'{name}:{{{_property(value, revision)}}}'
      for name, value in _dictsort(properties)
      if name not in without
  )


def _property(value: Any, revision: _templates.Revision) -> str:
  """Returns the keys of one property, in the template's order."""
  kind = _type(value)
  fields = []
  if description := _get(value, 'description'):
    fields.append(f'description:{_quoted(description)}')
  if kind == 'STRING' and (enum := _get(value, 'enum')):
    fields.append(f'enum:{_value(enum, revision, quote_keys=True)}')
  items = _get(value, 'items')
  if kind == 'ARRAY' and isinstance(items, dict) and items:
    fields.append(f'items:{{{_items(items, revision)}}}')
  if _get(value, 'nullable'):
    fields.append('nullable:true')
  if kind == 'OBJECT':
    properties, without = _get(value, 'properties'), ()
    if not isinstance(properties, dict):
      properties, without = value, _SCHEMA_KEYS
    inner = _properties(properties, revision, without=without)
    fields.append(f'properties:{{{inner}}}')
    if required := _get(value, 'required'):
      fields.append(f'required:{_names(required)}')
  fields.append(f'type:{_quoted(kind)}')
  return ','.join(fields)


def _items(items: dict[str, Any], revision: _templates.Revision) -> str:
  fields = []
  for key, value in _dictsort(items):
    if value is None:
      continue
    if key == 'properties':
      inner = _properties(value, revision) if isinstance(value, dict) else ''
      text = f'{{{inner}}}'
    elif key == 'required':
      text = _names(value)
    elif key == 'type':
      if isinstance(value, list):
        text = _value([str(x).upper() for x in value], revision)
      else:
        text = _quoted(str(value).upper())
    else:
      text = _value(value, revision, quote_keys=True)
    fields.append(f'{key}:{text}')
  return ','.join(fields)


def _value(
    value: Any, revision: _templates.Revision, *, quote_keys: bool = False
) -> str:
  """Returns a value of JSON in the notation."""
  if value is None:
    return revision.null
  if isinstance(value, str):
    return _quoted(value)
  if isinstance(value, bool):
    return 'true' if value else 'false'
  if isinstance(value, dict):
    pairs = (
        (_quoted(k) if quote_keys else k)
        + ':'
        + _value(v, revision, quote_keys=quote_keys)
        for k, v in _dictsort(value)
    )
    return '{' + ','.join(pairs) + '}'
  if isinstance(value, list | tuple):
    texts = (_value(v, revision, quote_keys=quote_keys) for v in value)
    return '[' + ','.join(texts) + ']'
  return str(value)


def _get(value: Any, key: str) -> Any:
  """Returns a field; None if it is missing, or if there are no fields."""
  return value.get(key) if isinstance(value, dict) else None


def _type(schema: Any) -> str:
  """Returns the type of a schema in upper case, nothing if it is missing."""
  kind = schema.get('type', '') if isinstance(schema, dict) else ''
  return str(kind).upper()


def _dictsort(value: dict[str, Any]) -> list[tuple[str, Any]]:
  """Sorts as Jinja's filter does: without regard to case."""
  return sorted(value.items(), key=lambda item: str(item[0]).lower())


def _names(names: Iterable[Any]) -> str:
  return '[' + ','.join(map(_quoted, names)) + ']'


def _quoted(text: Any) -> str:
  return f'<|"|>{text}<|"|>'
