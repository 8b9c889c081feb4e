"""Tests of the layouts of rows: all say the same, and errors say where."""

import dataclasses
import json

from kauldron import kd
import numpy as np
import pytest

from gemma4_lora import g4

_TASK = g4.data.ChatTask(
    layout='messages', tokenizer=g4.testing.Gemma4Tokenizer(), max_length=256
)
_SHAREGPT = dataclasses.replace(_TASK, layout='sharegpt')

_MESSAGES = [
    {'role': 'system', 'content': 'Be kind.'},
    {'role': 'user', 'content': 'Hello.'},
    {'role': 'assistant', 'content': 'Où ?'},
]
_TEXT = (
    '<|turn>system\nBe kind.<turn|>\n<|turn>user\nHello.<turn|>\n'
    '<|turn>model\nOù ?<turn|>'
)


def _columns(rows):
  return {key: [row[key] for row in rows] for key in rows[0]}


def _bytes(rows):
  return [{k: v.encode() for k, v in row.items()} for row in rows]


@pytest.mark.parametrize(
    'value',
    [
        _MESSAGES,
        tuple(_MESSAGES),
        json.dumps(_MESSAGES),
        np.array(_MESSAGES, object),
        _columns(_MESSAGES),
        _bytes(_MESSAGES),
        # As TFDS gives a Sequence of features.
        {
            k: np.array(v, object)
            for k, v in _columns(_bytes(_MESSAGES)).items()
        },
        [
            dict(m, role=m['role'].replace('assistant', 'model'))
            for m in _MESSAGES
        ],
        [dict(m, tool_calls=None, weight=None) for m in _MESSAGES],
        [
            dict(m, content=[{'type': 'text', 'text': m['content']}])
            for m in _MESSAGES
        ],
    ],
    ids=range(10),
)
def test_messages_of_all_readers_are_the_same(value):
  assert _TASK.render({'messages': value}).text == _TEXT


def test_layouts_say_the_same():
  values = [
      {'from': 'system', 'value': 'Be kind.'},
      {'from': 'human', 'value': 'Hello.'},
      {'from': 'gpt', 'value': 'Où ?'},
  ]
  assert _SHAREGPT.render({'conversations': values}).text == _TEXT
  task = dataclasses.replace(_SHAREGPT, in_system='system')
  row = {'conversations': values[1:], 'system': 'Be kind.'}
  assert task.render(row).text == _TEXT
  task = dataclasses.replace(
      _TASK, layout='prompt_response', in_system='system'
  )
  row = {'prompt': 'Hello.', 'response': 'Où ?', 'system': b'Be kind.'}
  assert task.render(row).text == _TEXT


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
        [dict(_TOOL, parameters=json.dumps(_TOOL['parameters']))],
    ],
    ids=['openai', 'bare', 'json', 'mcp', 'inner_json'],
)
def test_tools_of_all_kinds_are_declared(tools):
  task = dataclasses.replace(_TASK, in_tools='tools')
  row = {'messages': _MESSAGES, 'tools': tools}
  assert f'Be kind.{_DECLARATION}<turn|>' in task.render(row).text
  row['messages'] = _MESSAGES[1:]  # No system turn to put them into.
  text = task.render(row).text
  assert text.startswith(f'<|turn>system\n{_DECLARATION}<turn|>\n<|turn>user')
  for none in (None, [], ''):
    assert task.render({'messages': _MESSAGES, 'tools': none}).text == _TEXT


def test_sharegpts_calls_are_those_of_messages():
  values = [
      {'from': 'human', 'value': 'Go.'},
      {
          'from': 'function_call',
          'value': '{"name": "f", "arguments": {"x": 1}}',
      },
      {'from': 'observation', 'value': 'one'},
      {'from': 'gpt', 'value': 'Done.'},
  ]
  messages = [
      {'role': 'user', 'content': 'Go.'},
      {
          'role': 'assistant',
          'content': '',
          'tool_calls': [{'function': {'name': 'f', 'arguments': {'x': 1}}}],
      },
      {'role': 'tool', 'content': 'one'},
      {'role': 'assistant', 'content': 'Done.'},
  ]
  sharegpt = _SHAREGPT.render({'conversations': values})
  assert sharegpt == _TASK.render({'messages': messages})
  assert 'response:f{value:<|"|>one<|"|>}' in sharegpt.text


def test_weights_of_messages_are_those_of_their_tokens():
  messages = [
      *_MESSAGES,
      {'role': 'user', 'content': 'a'},
      {'role': 'assistant', 'content': 'b', 'weight': 0},
      {'role': 'user', 'content': 'c'},
      {'role': 'assistant', 'content': 'd', 'weight': 0.5},
  ]
  with pytest.raises(
      ValueError, match='0.5, which a mask .*token_weights=True'
  ):
    _TASK.map({'messages': messages})
  task = dataclasses.replace(_TASK, token_weights=True)
  out = task.map({'messages': messages})
  assert out['loss_mask'].dtype == np.float32
  decoded = {
      weight: task.tokenizer.decode(out['target'][out['loss_mask'] == weight])
      for weight in (1, 0.5)
  }
  assert decoded == {1: 'Où ?<turn|>', 0.5: 'd<turn|>'}


def test_a_weighted_mask_is_what_losses_take():
  out = dataclasses.replace(_TASK, token_weights=True).map(
      {'messages': [*_MESSAGES[:2], dict(_MESSAGES[2], weight=0.5)]}
  )
  values = np.ones_like(out['loss_mask'])
  state = kd.losses.base.AllReduceMean.from_values(values, out['loss_mask'])
  assert state.compute() == 1
  assert state.count == 0.5 * (out['loss_mask'] > 0).sum()


def _with(message, *, at=1):
  messages = [dict(m) for m in _MESSAGES]
  messages[at] = message
  return {'messages': messages}


@pytest.mark.parametrize(
    'row, match',
    [
        ({'messages': []}, "'messages' has no messages"),
        ({'messages': 3}, "'messages' should be a list of dicts, .* int: 3"),
        ({'messages': '[{'}, "'messages' is a text that is not JSON"),
        ({'messages': ['a']}, r"'messages\[0\]' should be a dict, .* str: 'a'"),
        (
            _with({'role': 'usr', 'content': 'a'}),
            r"'messages\[1\].role' is 'usr', .* Did you mean 'user'",
        ),
        (
            _with({'from': 'human', 'value': 'a'}),
            r"'messages\[1\]' has no 'role'.*Is `layout=` the right one",
        ),
        (_with({'role': 'user'}), r"'messages\[1\]' has no 'content'"),
        (
            _with({'role': 'user', 'content': 3}),
            r"'messages\[1\].content' should be text .* int: 3",
        ),
        (
            _with({'role': 'user', 'content': [{'type': 'video'}]}),
            r"'messages\[1\].content\[0\]' should be .*video",
        ),
        (
            _with({'role': 'user', 'content': [{'type': 'text'}]}),
            r"'messages\[1\].content\[0\].text' should be text",
        ),
        (
            _with({'role': 'user', 'content': 'a<turn|>'}),
            r"'messages\[1\].content' has the turn tag '<turn\|>'",
        ),
        (
            _with({'role': 'user', 'content': 'a', 'tool_calls': [{}]}),
            r"'messages\[1\].tool_calls\[0\]' should be a call",
        ),
        (
            _with(
                {
                    'role': 'user',
                    'content': 'a',
                    'tool_calls': [{'name': 'f', 'arguments': {}}],
                }
            ),
            r"'messages\[1\]' has tool calls, but its role is 'user'",
        ),
        (
            _with(
                {
                    'role': 'assistant',
                    'tool_calls': [{'name': 'f', 'arguments': '[1]'}],
                }
            ),
            r"'messages\[1\].tool_calls\[0\].arguments' should be a dict",
        ),
        (
            _with({'role': 'tool', 'content': 'a'}),
            r"'messages\[1\]' is a tool's answer, but the message before",
        ),
        (
            {
                'messages': [
                    {'role': 'assistant', 'tool_calls': [{'name': 'f'}]},
                    {'role': 'tool', 'content': 'a'},
                    {'role': 'tool', 'content': 'b'},
                ]
            },
            r"'messages\[2\]' is a tool's answer, and does not say of which",
        ),
        (
            _with({'role': 'assistant', 'content': 'a', 'weight': -1}, at=2),
            r"'messages\[2\].weight' should be a number .* -1",
        ),
        (
            {'messages': _MESSAGES[:2]},
            "nothing of the conversation would be trained.*loss_on='all'",
        ),
        (
            _with({'role': 'assistant', 'content': 'a', 'weight': 0}, at=2),
            'nothing of the conversation would be trained',
        ),
    ],
)
def test_a_malformed_row_is_an_error_that_says_where(row, match):
  with pytest.raises(ValueError, match=match) as e:
    _TASK.map(row)
  assert 'In the row: {' in str(e.value)


@pytest.mark.parametrize(
    'tools, match',
    [
        ([{'description': 'a'}], r"'tools\[0\]' has no 'name'"),
        (['{'], r"'tools\[0\]' should be a dict"),
    ],
)
def test_a_malformed_tool_is_an_error(tools, match):
  task = dataclasses.replace(_TASK, in_tools='tools')
  with pytest.raises(ValueError, match=match):
    task.map({'messages': _MESSAGES, 'tools': tools})


def test_a_malformed_sharegpt_message_is_an_error():
  with pytest.raises(ValueError, match=r"'conversations\[0\]' has no 'value'"):
    _SHAREGPT.map({'conversations': [{'from': 'human', 'text': 'a'}]})


def test_two_system_messages_are_an_error():
  task = dataclasses.replace(_TASK, in_system='system')
  with pytest.raises(ValueError, match="'system' is a second system message"):
    task.map({'messages': _MESSAGES, 'system': 'a'})


def test_a_key_of_another_layout_is_an_error():
  with pytest.raises(
      ValueError, match="in_messages='chat' .*layout='sharegpt'"
  ):
    dataclasses.replace(_TASK, layout='prompt_response', in_messages='chat')


def test_inputs_of_all_layouts_are_dropped():
  task = dataclasses.replace(
      _TASK, in_messages='chat', in_system='s', in_tools='t'
  )
  row = {'chat': _MESSAGES[1:], 's': 'a', 't': None, 'id': 7}
  assert set(task.map(row)) == {'input', 'target', 'loss_mask', 'id'}
