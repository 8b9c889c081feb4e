"""JSON schemas of tools, and the nulls that datasets fill in.

Arrow has one type for all rows of a column. Hugging Face's `datasets` and Parquet
therefore give every struct the fields of all the others, as None.
"""

from collections.abc import Iterator
from typing import Any

from gemma4_lora.data.rows import _short

# Keywords whose values are schemas, lists of schemas, and schemas by name.
_SCHEMA = ('items', 'not', 'additionalProperties', 'contains', 'propertyNames')
_LISTS = ('allOf', 'anyOf', 'oneOf', 'prefixItems')
_NAMED = ('properties', '$defs', 'definitions', 'patternProperties')
# Keywords whose null is a value.
_VALUES = ('default', 'const')
# Python's names of types, as xLAM has them.
_PYTHON_TYPES = {
    'str': 'string',
    'int': 'integer',
    'float': 'number',
    'bool': 'boolean',
    'list': 'array',
    'tuple': 'array',
    'set': 'array',
    'dict': 'object',
}
_TYPES = (*dict.fromkeys(_PYTHON_TYPES.values()), 'null')


def parameters(value: Any, *, field: str) -> dict[str, Any]:
  """Returns the schema of a tool's arguments, without the nulls of datasets.

  Args:
    value: A JSON schema, or xLAM's flat form: `{name: {'type': 'str', ...}}`.
    field: Where it stands, for errors.

  Raises:
    ValueError: It is no schema.
  """
  if isinstance(value, dict):
    value = {k: v for k, v in value.items() if v is not None}
    if _is_flat(value):
      value = _from_flat(value, field=field)
  return cleaned(value, field=field)


def cleaned(schema: Any, *, field: str) -> dict[str, Any]:
  """Returns a schema without nulls that have no meaning.

  Raises:
    ValueError: It is no schema.
  """
  if not isinstance(schema, dict):
    raise ValueError(
        f'Field {field!r} should be a JSON schema, a dict, but it is a'
        f' {type(schema).__name__}: {_short.short(schema)}'
    )
  result = {}
  for key, value in schema.items():
    where = f'{field}.{key}'
    if value is None:
      if key not in _VALUES or not allows_null(schema, schema):
        continue
    elif key in _NAMED:
      value = _named(value, field=where)
    elif key in _LISTS and isinstance(value, list):
      value = [_inner(x, f'{where}[{i}]') for i, x in enumerate(value)]
    elif key in _SCHEMA:
      value = _inner(value, where)
    result[key] = value
  return result


def without_nulls(value: Any, schema: Any, root: Any) -> Any:
  """Returns a value without the nulls in dicts that a schema does not allow.

  Args:
    value: Arguments of a call, or a part of them.
    schema: Its schema; None to drop all nulls.
    root: The whole schema, which `$ref` refers to.
  """
  if isinstance(value, dict):
    return {
        k: without_nulls(v, inner, root)
        for k, v in value.items()
        for inner in [_property(schema, k, root)]
        if v is not None or allows_null(inner, root)
    }
  if isinstance(value, list):
    # An entry of a list is not a field of another row.
    inner = _items(schema, root)
    return [without_nulls(v, inner, root) for v in value]
  return value


def has_null(value: Any) -> bool:
  """Whether a dict somewhere in the value has a null."""
  if isinstance(value, dict):
    return any(v is None or has_null(v) for v in value.values())
  return isinstance(value, list) and any(map(has_null, value))


def allows_null(schema: Any, root: Any) -> bool:
  """Whether a schema says that null is a value."""
  for branch in _branches(schema, root):
    kind = branch.get('type')
    kinds = kind if isinstance(kind, list) else [kind]
    if 'null' in [str(x).lower() for x in kinds] or branch.get('nullable'):
      return True
    if None in (branch.get('enum') or ()):
      return True
    if not branch:  # `{}` allows all.
      return True
  return False


def _branches(schema: Any, root: Any, depth: int = 8) -> Iterator[dict]:
  """Yields a schema and its alternatives."""
  if not isinstance(schema, dict) or not depth:
    return
  yield schema
  reference = schema.get('$ref')
  if isinstance(reference, str):
    yield from _branches(_referred(reference, root), root, depth - 1)
  for key in ('anyOf', 'oneOf', 'allOf'):
    for inner in schema.get(key) or ():
      yield from _branches(inner, root, depth - 1)


def _referred(reference: str, root: Any) -> Any:
  value = root
  for name in reference.removeprefix('#/').split('/'):
    value = value.get(name) if isinstance(value, dict) else None
  return value


def _property(schema: Any, name: str, root: Any) -> Any:
  for branch in _branches(schema, root):
    properties = branch.get('properties')
    if isinstance(properties, dict) and name in properties:
      return properties[name]
    other = branch.get('additionalProperties')
    if isinstance(other, dict):
      return other
  return None


def _items(schema: Any, root: Any) -> Any:
  for branch in _branches(schema, root):
    if isinstance(branch.get('items'), dict):
      return branch['items']
  return None


def _named(value: Any, *, field: str) -> dict[str, Any]:
  if not isinstance(value, dict):
    raise ValueError(
        f'Field {field!r} should be a dict of JSON schemas. Got:'
        f' {_short.short(value)}'
    )
  return {
      k: _inner(v, f'{field}.{k}') for k, v in value.items() if v is not None
  }


def _inner(value: Any, field: str) -> Any:
  return value if isinstance(value, bool) else cleaned(value, field=field)


def _is_flat(value: dict[str, Any]) -> bool:
  """Whether these are parameters by name, without a schema around them."""
  known = (*_SCHEMA, *_LISTS, *_NAMED)
  return (
      bool(value)
      and all(isinstance(x, dict) for x in value.values())
      and not any(key in known for key in value)
  )


def _from_flat(value: dict[str, Any], *, field: str) -> dict[str, Any]:
  """Returns the schema of parameters that are given by name only."""
  properties, required = {}, []
  for name, parameter in value.items():
    kind, is_optional = _kind(
        parameter.get('type'), field=f'{field}.{name}.type'
    )
    properties[name] = dict(parameter) | kind
    has_default = parameter.get('default') not in (None, '')
    if not (is_optional or has_default):
      required.append(name)
  schema = {'type': 'object', 'properties': properties}
  return schema | ({'required': required} if required else {})


def _kind(kind: Any, *, field: str) -> tuple[dict[str, Any], bool]:
  """Returns the schema of a Python type name, and whether it is optional."""
  if isinstance(kind, list) or kind in _TYPES:
    return {'type': kind}, False
  name, *rest = str(kind).split(',')
  is_optional = any(x.strip() == 'optional' for x in rest)
  name = ','.join([name, *(x for x in rest if x.strip() != 'optional')])
  name = name.strip()
  outer, _, inner = name.lower().partition('[')
  if outer == 'optional' and inner:
    return _kind(name[len('optional[') : -1], field=field)[0], True
  ours = _json_type(outer)
  if ours is None:
    raise ValueError(
        f'Field {field!r} is {kind!r}, which is no type of JSON. Types are:'
        f' {list(_TYPES)}, and of Python: {list(_PYTHON_TYPES)}.'
    )
  schema: dict[str, Any] = {'type': ours}
  inner = inner.removesuffix(']')
  # Lists of several types are lists of anything.
  if ours == 'array' and _json_type(inner.partition('[')[0]):
    schema['items'] = _kind(inner, field=field)[0]
  return schema, is_optional


def _json_type(name: str) -> str | None:
  return _PYTHON_TYPES.get(name, name if name in _TYPES else None)
