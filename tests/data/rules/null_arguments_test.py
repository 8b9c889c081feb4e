"""Tests of nulls in arguments: values, or what datasets fill in."""

import dataclasses

import pytest

from gemma4_lora import g4

_TASK = g4.data.ChatTask(
    layout='messages',
    in_tools='tools',
    tokenizer=g4.testing.Gemma4Tokenizer(),
    max_length=1024,
)
_STRING = {'type': 'string'}
_NULLABLE = {'type': ['string', 'null']}
_SCHEMA = {
    'type': 'object',
    'properties': {
        'city': _STRING,
        'unit': _NULLABLE,
        'other': {'anyOf': [_STRING, {'type': 'null'}]},
        'open': {'type': 'STRING', 'nullable': True},
        'one_of': {'enum': ['a', None]},
        'any': {},
        'ref': {'$ref': '#/$defs/point'},
        'list': {'type': 'array', 'items': {'$ref': '#/$defs/point'}},
    },
    '$defs': {
        'point': {
            'type': 'object',
            'properties': {'x': _STRING, 'y': _NULLABLE},
        },
        'loop': {'$ref': '#/$defs/loop'},
    },
}


def _arguments(task, arguments, tools=({'name': 'f', 'parameters': _SCHEMA},)):
  call = {'function': {'name': 'f', 'arguments': arguments}}
  row = {
      'messages': [
          {'role': 'user', 'content': 'Go.'},
          {'role': 'assistant', 'tool_calls': [call]},
      ],
      'tools': list(tools),
  }
  return task.conversation(row).messages[-1].calls[0].arguments


_POINT = {'x': None, 'y': None, 'z': None}


@pytest.mark.parametrize(
    'arguments, wanted',
    [
        ({'city': 'Paris', 'days': None}, {'city': 'Paris'}),
        ({'city': None}, {}),
        ({'unit': None}, {'unit': None}),
        ({'other': None}, {'other': None}),
        ({'open': None}, {'open': None}),
        ({'one_of': None}, {'one_of': None}),
        ({'any': None}, {'any': None}),
        ({'ref': _POINT}, {'ref': {'y': None}}),
        ({'ref': None}, {}),
        ({'list': [_POINT, None]}, {'list': [{'y': None}, None]}),
        ({'days': {'a': {'b': None, 'c': 1}}}, {'days': {'a': {'c': 1}}}),
        # No reader fills in what is JSON in a text.
        ('{"city": null, "days": null}', {'city': None, 'days': None}),
    ],
)
def test_nulls_that_the_schema_does_not_allow_are_left_out(arguments, wanted):
  assert _arguments(_TASK, arguments) == wanted


def test_the_policy_is_an_argument():
  arguments = {'city': None, 'unit': None, 'ref': {'y': None, 'x': 'a'}}
  keep = dataclasses.replace(_TASK, null_arguments='keep')
  assert _arguments(keep, arguments) == arguments
  drop = dataclasses.replace(_TASK, null_arguments='drop')
  assert _arguments(drop, arguments) == {'ref': {'x': 'a'}}
  assert _arguments(drop, '{"city": null}') == {}


def test_a_tool_that_is_not_declared_may_take_nulls():
  for tools in ((), ({'name': 'g'},)):
    assert _arguments(_TASK, {'a': None}, tools=tools) == {'a': None}
  assert _arguments(_TASK, {'a': None}, tools=[{'name': 'f'}]) == {}


@pytest.mark.parametrize(
    'policy, declared, wanted',
    [
        ('schema', False, {'a': None, 'b': {'c': None}}),
        ('schema', True, {'b': {}}),
        ('keep', True, {'a': None, 'b': {'c': None}}),
        ('drop', False, {'b': {}}),
    ],
)
def test_answers_are_read_by_the_declared_answer(policy, declared, wanted):
  tool = {'name': 'f'}
  if declared:
    tool['response'] = {'type': 'object', 'properties': {'a': _STRING}}
  call = {'function': {'name': 'f', 'arguments': {}}}
  answer = {'a': None, 'b': {'c': None}}
  row = {
      'messages': [
          {'role': 'user', 'content': 'Go.'},
          {'role': 'assistant', 'tool_calls': [call]},
          {'role': 'tool', 'content': answer},
          {'role': 'assistant', 'content': 'Done.'},
      ],
      'tools': [tool],
  }
  task = dataclasses.replace(_TASK, null_arguments=policy)
  (said,) = task.conversation(row).messages[1].responses
  assert said.response == wanted


def test_rows_of_hugging_face_datasets_are_those_of_json():
  """By Arrow's structs, in which each has the fields of all."""
  datasets = pytest.importorskip('datasets')
  rows = []
  for name, key in (('f', 'city'), ('g', 'q')):
    schema = {'type': 'object', 'properties': {key: _STRING}}
    call = {'id': key, 'function': {'name': name, 'arguments': {key: 'x'}}}
    rows.append(
        {
            'tools': [{'name': name, 'parameters': schema}],
            'messages': [
                {'role': 'user', 'content': 'Go.'},
                {'role': 'assistant', 'tool_calls': [call]},
                {'role': 'tool', 'tool_call_id': key, 'content': '1'},
                {'role': 'assistant', 'content': 'Done.'},
            ],
        }
    )
  wanted = [_TASK.render(row) for row in rows]
  filled = list(datasets.Dataset.from_list(rows))
  assert filled != rows
  assert [_TASK.render(row) for row in filled] == wanted
