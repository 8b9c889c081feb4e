"""Tests of schemas: nulls of datasets, and xLAM's flat parameters."""

import pytest

from gemma4_lora.data.rows import _schemas


def _clean(schema):
  return _schemas.parameters(schema, field='p')


def test_nulls_are_removed_at_every_depth():
  schema = {
      'type': 'object',
      'required': None,
      'properties': {
          'q': None,
          'a': {
              'type': 'array',
              'enum': None,
              'items': {
                  'type': 'object',
                  'properties': {'b': {'type': 'string', 'description': None}},
                  'items': None,
              },
          },
          'c': {'anyOf': [{'type': 'string', 'format': None}, True]},
          'd': {
              'type': ['string', 'null'],
              'default': None,
              'enum': ['x', None],
          },
          'e': {'type': 'string', 'default': None},
      },
      'additionalProperties': False,
  }
  assert _clean(schema) == {
      'type': 'object',
      'properties': {
          'a': {
              'type': 'array',
              'items': {
                  'type': 'object',
                  'properties': {'b': {'type': 'string'}},
              },
          },
          'c': {'anyOf': [{'type': 'string'}, True]},
          'd': {
              'type': ['string', 'null'],
              'default': None,
              'enum': ['x', None],
          },
          'e': {'type': 'string'},
      },
      'additionalProperties': False,
  }


@pytest.mark.parametrize(
    'schema',
    [
        {},
        {'type': 'object'},
        {'type': 'object', 'properties': {}},
        {'properties': {'type': {'type': 'string'}}},
        {'$ref': '#/$defs/a', '$defs': {'a': {'type': 'object'}}},
    ],
)
def test_a_schema_stays_as_it_is(schema):
  assert _clean(schema) == schema


def test_flat_parameters_are_a_schema_of_them():
  flat = {
      'type': {'description': 'Which.', 'type': 'str', 'default': 'game'},
      'number': {'type': 'int', 'description': ''},
      'names': {'type': 'List[str]'},
      'grid': {'type': 'list[list[float]], optional'},
      'on': {'type': 'bool, optional', 'default': None},
      'rest': {'type': 'Optional[Dict[str, int]]'},
      'any': {'type': 'string'},
      'mixed': {'type': 'List[Union[int, float]]', 'default': [1]},
      'pair': {'type': 'Tuple[int, int], optional'},
  }
  schema = _clean(flat)
  assert schema['required'] == ['number', 'names', 'any']
  assert {k: v['type'] for k, v in schema['properties'].items()} == {
      'type': 'string',
      'number': 'integer',
      'names': 'array',
      'grid': 'array',
      'on': 'boolean',
      'rest': 'object',
      'any': 'string',
      'mixed': 'array',
      'pair': 'array',
  }
  assert 'items' not in schema['properties']['mixed']
  assert schema['properties']['names']['items'] == {'type': 'string'}
  assert schema['properties']['grid']['items'] == {
      'type': 'array',
      'items': {'type': 'number'},
  }
  assert schema['properties']['type']['description'] == 'Which.'


@pytest.mark.parametrize(
    'schema, match',
    [
        (['a'], "'p' should be a JSON schema, a dict, but it is a list"),
        (
            {'properties': ['a']},
            "'p.properties' should be a dict of JSON schemas",
        ),
        (
            {'properties': {'a': 'str'}},
            "'p.properties.a' should be a JSON schema.* str: 'str'",
        ),
        (
            {'f': {'type': 'Callable[[int], int]'}},
            "'p.f.type' is 'Callable.*no type",
        ),
        ({'f': {'description': 'a'}}, "'p.f.type' is None"),
    ],
)
def test_what_is_no_schema_is_malformed(schema, match):
  with pytest.raises(ValueError, match=match):
    _clean(schema)
