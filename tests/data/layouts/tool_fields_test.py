"""Tests of tools in the fields of a row."""

import dataclasses
import json

import numpy as np
import pytest

from gemma4_lora import g4

_TASK = g4.data.ChatTask(
    layout='messages',
    in_tools='tools',
    tokenizer=g4.testing.Gemma4Tokenizer(),
    max_length=256,
)
_MESSAGES = [
    {'role': 'system', 'content': 'Be kind.'},
    {'role': 'user', 'content': 'Hello.'},
    {'role': 'assistant', 'content': 'Où ?'},
]
_TOOL = {
    'name': 'f',
    'description': 'Does.',
    'parameters': {'type': 'object', 'properties': {'x': {'type': 'integer'}}},
}
_DECLARATION = (
    '<|tool>declaration:f{description:<|"|>Does.<|"|>,parameters:{properties:'
    '{x:{type:<|"|>INTEGER<|"|>}},type:<|"|>OBJECT<|"|>}}<tool|>'
)


@pytest.mark.parametrize(
    'tools',
    [
        [{'type': 'function', 'function': _TOOL}],
        [_TOOL],
        json.dumps([_TOOL]),
        [
            {
                'name': 'f',
                'description': 'Does.',
                'inputSchema': _TOOL['parameters'],
            }
        ],
        [
            {
                'name': 'f',
                'description': 'Does.',
                'input_schema': _TOOL['parameters'],
                'inputSchema': {'type': None},
            }
        ],
        [{'name': 'f', 'description': 'Does.', 'args': _TOOL['parameters']}],
        [dict(_TOOL, parameters=json.dumps(_TOOL['parameters']))],
        [dict(_TOOL, function=None, strict=None)],
        [dict(_TOOL, parameters={'x': {'type': 'int, optional'}})],
    ],
    ids=[
        'openai',
        'bare',
        'json',
        'mcp',
        'claude',
        'args',
        'inner_json',
        'nulls',
        'xlam',
    ],
)
def test_tools_of_all_kinds_are_declared(tools):
  row = {'messages': _MESSAGES, 'tools': tools}
  assert f'Be kind.{_DECLARATION}<turn|>' in _TASK.render(row).text
  row['messages'] = _MESSAGES[1:]  # No system turn to put them into.
  text = _TASK.render(row).text
  assert text.startswith(f'<|turn>system\n{_DECLARATION}<turn|>\n<|turn>user')
  without = dataclasses.replace(_TASK, in_tools=None)
  for none in (None, [], ''):
    row = {'messages': _MESSAGES, 'tools': none}
    assert _TASK.render(row) == without.render(row)


@pytest.mark.parametrize(
    'tools, match',
    [
        ([{'description': 'a'}], r"'tools\[0\]' has no 'name'"),
        (['{'], r"'tools\[0\]' should be a dict"),
        (
            [{'name': 'f', 'args': {'x': {'type': 'integer'}}}],
            r"'tools\[0\].args' is not read.* at 'parameters'",
        ),
        (
            [dict(_TOOL, input_schema=_TOOL['parameters'])],
            r"each of \['parameters', 'input_schema'\]",
        ),
        ([{'function': 3}], r"'tools\[0\].function' should be a dict"),
        (
            [{'name': 'f', 'parameters': {'properties': {'q': 3}}}],
            r"'tools\[0\].parameters.properties.q' should be a JSON schema",
        ),
    ],
)
def test_a_malformed_tool_is_an_error(tools, match):
  with pytest.raises(ValueError, match=match):
    _TASK.map({'messages': _MESSAGES, 'tools': tools})


def test_arguments_that_are_an_array_say_what_they_are():
  call = {'function': {'name': 'f', 'arguments': np.zeros(3)}}
  row = {
      'messages': [
          {'role': 'user', 'content': 'a'},
          {'role': 'assistant', 'tool_calls': [call]},
      ],
      'tools': None,
  }
  with pytest.raises(ValueError, match=r'arguments. should be a dict.*array'):
    _TASK.render(row)


def _called(call):
  return {
      'messages': [
          {'role': 'user', 'content': 'a'},
          {'role': 'assistant', 'tool_calls': [call]},
      ],
      'tools': None,
  }


@pytest.mark.parametrize(
    'call',
    [
        {'name': 'f', 'parameters': {'a': 1}},
        {'id': 'c', 'name': 'f', 'input': {'a': 1}, 'caller': {'type': 'd'}},
        {'function': {'name': 'f', 'args': '{"a": 1}', 'input': {'b': None}}},
    ],
)
def test_arguments_are_read_under_all_their_names(call):
  assert (
      '<|tool_call>call:f{a:1}<tool_call|>'
      in _TASK.render(_called(call)).trained
  )


@pytest.mark.parametrize(
    'call, match',
    [
        (
            {'name': 'f', 'arguments': {'a': 1}, 'input': {'b': 1}},
            r"tool_calls\[0\]' has each of \['arguments', 'input'\]",
        ),
        ({'name': 'f', 'kwargs': {'a': 1}}, "has a dict at 'kwargs'"),
        (
            {'function': {'name': 'f'}, 'input': {'a': 1}},
            "has a dict at 'input'",
        ),
    ],
)
def test_arguments_that_would_be_lost_are_malformed(call, match):
  with pytest.raises(ValueError, match=match):
    _TASK.render(_called(call))
