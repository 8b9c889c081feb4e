"""Tests of calls and their answers."""

import dataclasses

import pytest

from gemma4_lora import g4

_TASK = g4.data.ChatTask(
    layout='messages', tokenizer=g4.testing.Gemma4Tokenizer(), max_length=512
)
_DONE = {'role': 'assistant', 'content': 'Done.'}
_USER = {'role': 'user', 'content': 'Go.'}


def _calls(*calls):
  return {
      'role': 'assistant',
      'content': None,
      'tool_calls': [
          {'id': call_id, 'function': {'name': name, 'arguments': {}}}
          for name, call_id in calls
      ],
  }


def _tool(content, **kwargs):
  return {'role': 'tool', 'content': content, **kwargs}


def _row(*messages):
  return {'messages': [_USER, *messages]}


def _names(row):
  (message,) = [m for m in _TASK.conversation(row).messages if m.calls]
  return [(answer.name, answer.response) for answer in message.responses]


_TWO = _calls(('f', 'a'), ('g', 'b'))
_SAME = _calls(('f', 'a'), ('f', 'b'))
_NO_IDS = _calls(('f', None), ('g', ''))


@pytest.mark.parametrize(
    'messages, names',
    [
        (
            [_TWO, _tool('1', tool_call_id='a'), _tool('2', tool_call_id='b')],
            'fg',
        ),
        (
            [_TWO, _tool('1', tool_call_id='b'), _tool('2', tool_call_id='a')],
            'gf',
        ),
        (
            [
                _TWO,
                _tool('1', tool_call_id='b', name='f'),
                _tool('2', name='f'),
            ],
            'gf',
        ),
        ([_TWO, _tool('1', name='g'), _tool('2')], 'gf'),
        ([_SAME, _tool('1', name='f'), _tool('2', name='f')], 'ff'),
        ([_NO_IDS, _tool('1'), _tool('2', name=None, tool_call_id='')], 'fg'),
        (
            [
                {
                    'role': 'assistant',
                    'function_call': {'name': 'f', 'arguments': '{}'},
                },
                {'role': 'function', 'name': 'f', 'content': '1'},
            ],
            'f',
        ),
        (
            [
                dict(
                    _TWO,
                    tool_responses=[
                        {'name': 'f', 'response': '1'},
                        {'name': None, 'response': '2'},
                    ],
                )
            ],
            'fg',
        ),
    ],
)
def test_answers_have_the_names_of_their_calls(messages, names):
  got = _names(_row(*messages, _DONE))
  assert got == [(name, str(i + 1)) for i, name in enumerate(names)]


@pytest.mark.parametrize(
    'messages, match',
    [
        (
            [_TWO, _tool('1', tool_call_id='c'), _tool('2')],
            r"'messages\[1\]' has an answer to an unknown call, "
            r"tool_call_id='c'.*ids: \['a', 'b'\]",
        ),
        (
            [_NO_IDS, _tool('1', tool_call_id='c'), _tool('2')],
            r'unknown call.*the ids: \[\]',
        ),
        (
            [_TWO, _tool('1', tool_call_id='a'), _tool('2', tool_call_id='a')],
            "several answers to one call, tool_call_id='a'",
        ),
        (
            [_calls(('f', 'a'), ('g', 'a')), _tool('1')],
            'several calls of one id',
        ),
        (
            [_TWO, _tool('1', tool_call_id='a'), _DONE],
            r"calls without an answer: \['g'\]. Add",
        ),
        ([_TWO, _tool('1', tool_call_id='a')], r"without an answer: \['g'\]"),
        (
            [_TWO, _tool('1', name='h'), _tool('2')],
            r"answer of another tool, 'name'='h'.* of: \['f', 'g'\]",
        ),
        (
            [_TWO, _tool('1', name='f'), _tool('2', name='f')],
            r"answer of another tool, 'name'='f'.* of: \['g'\]",
        ),
        ([_TWO, _DONE], r"\['f', 'g'\]. Behind it the model speaks"),
        ([_TWO, _USER, _DONE], 'Behind it the user speaks'),
        (
            [_calls(('f', 'a')), _tool('1'), _tool('2')],
            'more answers of tools than calls: 1 calls',
        ),
        ([_DONE, _tool('1')], 'more answers of tools than calls: 0 calls'),
        ([_tool('1')], 'the message before it calls no tool'),
        ([_TWO, _tool(None)], 'says nothing: its content is None'),
        ([_TWO, _tool('1', name={})], r"messages\[2\].name' should be text"),
        (
            [dict(_TWO, tool_responses=[{'name': 'f'}]), _DONE],
            r'tool_responses\[0\].* should be',
        ),
        (
            [dict(_TWO, function_call={'name': 'f'}), _DONE],
            "both 'tool_calls' and a 'function_call'",
        ),
    ],
)
def test_calls_and_answers_that_do_not_match_are_malformed(messages, match):
  with pytest.raises(ValueError, match=match):
    _TASK.render(_row(*messages))


def test_the_last_call_needs_no_answer():
  """It ends where samplers stop and tools run, in each template."""
  for template in ('dialog', 'transformers'):
    task = dataclasses.replace(_TASK, template=template)
    trained = task.render(_row(_TWO)).trained
    assert trained == (
        '<|tool_call>call:f{}<tool_call|><|tool_call>call:g{}<tool_call|>'
        '<|tool_response>'
    )


def test_sharegpts_calls_in_a_row_run_beside_each_other():
  task = dataclasses.replace(_TASK, layout='sharegpt')
  row = {
      'conversations': [
          {'from': 'human', 'value': 'Go.'},
          {'from': 'function_call', 'value': '{"name": "f", "arguments": {}}'},
          {'from': 'function_call', 'value': '{"name": "g", "arguments": {}}'},
          {'from': 'observation', 'value': '1'},
          {'from': 'observation', 'value': '2'},
          {'from': 'gpt', 'value': 'Done.'},
      ]
  }
  wanted = _TASK.render(_row(_NO_IDS, _tool('1'), _tool('2'), _DONE))
  assert task.render(row) == wanted
  row['conversations'][1:3] = [
      {
          'from': 'gpt',
          'value': '',
          'tool_calls': [
              {'name': 'f', 'arguments': '{}'},
              {'name': 'g', 'arguments': {}},
          ],
      },
  ]
  assert task.render(row) == wanted
