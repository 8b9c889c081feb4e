"""Tests of messages of role and content: of all readers, and their errors."""

import dataclasses
import json

import numpy as np
import pytest

from gemma4_lora import g4

_TASK = g4.data.ChatTask(
    layout='messages', tokenizer=g4.testing.Gemma4Tokenizer(), max_length=256
)

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
            r"'messages\[0\]' has more answers of tools than calls: 1 calls",
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
    'message, trained',
    [
        ({'content': 'a'}, 'a'),
        ({'content': 'a', 'train': True, 'loss': 1, 'masked': False}, 'a'),
        # As readers fill in structs.
        (
            {
                'content': 'a',
                'function_call': {'name': None, 'arguments': None},
                'audio': {'id': None},
                'refusal': '',
                'reasoning_details': [],
                'tool_calls': [],
            },
            'a',
        ),
        ({'content': 'a', 'training': None, 'masked': 0}, 'a'),
        ({'content': 'a', 'train': False}, ''),
        ({'content': 'a', 'training': 'False'}, ''),
        ({'content': 'a', 'loss': 0}, ''),
        ({'content': 'a', 'loss': False, 'weight': 1}, ''),
        ({'content': 'a', 'weight': False}, ''),
        ({'content': 'a', 'masked': True}, ''),
        ({'content': 'a', 'loss_scale': 0.0}, ''),
        ({'content': 'a', 'loss_weight': 0}, ''),
        ({'content': 'a', 'trainable': False, 'train_detail': []}, ''),
        ({'content': 'a', 'trainable': True, 'loss_scale': 1.0}, 'a'),
        (
            {
                'content': 'a',
                'reasoning_content': 'b',
                'thinking_blocks': [{'type': 'thinking', 'thinking': 'b'}],
            },
            '<|channel>thought\nb<channel|>a',
        ),
        ({'content': None, 'refusal': 'No.'}, 'No.'),
        ({'refusal': 'No.', 'audio': None}, 'No.'),
        ({'content': [{'type': 'refusal', 'refusal': 'No.'}]}, 'No.'),
    ],
)
def test_messages_are_trained_as_their_fields_say(message, trained):
  messages = [*_MESSAGES, _MESSAGES[1], {'role': 'assistant', **message}]
  rendered = _TASK.render({'messages': messages})
  end = f'{trained}<turn|>' if trained else ''
  assert rendered.trained == f'Où ?<turn|>{end}'
  values = [
      {'from': m['role'], 'value': m.get('content')} | m for m in messages
  ]
  sharegpt = dataclasses.replace(_TASK, layout='sharegpt')
  assert sharegpt.render({'conversations': values}) == rendered


@pytest.mark.parametrize(
    'message, match',
    [
        ({'content': 'a', 'weight': 10**400}, "2.*weight' should be a number"),
        ({'content': 'a', 'weight': float('inf')}, "2.*weight' should be a"),
        ({'content': 'a', 'train': 0.5}, "2.*train' should be true or false"),
        ({'content': 'a', 'loss': []}, "2.*loss' should be true or false"),
        ({'content': 'a', 'masked': 'no'}, "2.*masked' should be .*'no'"),
        ({'content': 'a', 'loss_scale': 0.5}, "loss_scale' .* at 'weight'"),
        ({'content': 'a', 'mask': True}, "2.*mask' is not read.*'masked'"),
        (
            {'content': 'a', 'train_detail': [{'train': False}]},
            "2.*train_detail' is not read",
        ),
        ({'content': 'a', 'reasoning_text': 'b'}, "'reasoning_text'"),
        (
            {'content': 'a', 'thinking_blocks': [{'thinking': 'b'}]},
            "'thinking_blocks'",
        ),
        ({'content': 'a', 'refusal': 'b'}, "both 'content' and a 'refusal'"),
        ({'audio': {'id': 'x'}}, "2.*audio' is not read"),
        ({'content': 'a', 'audio': {'id': 'x'}}, "2.*audio' is not read"),
        ({'content': [{'type': 'input_audio'}]}, 'content.0.* should be'),
        (
            {'tool_calls': [{'function': None}]},
            'tool_calls.0.* should be a call',
        ),
        ({'tool_calls': [None]}, 'tool_calls.0.* should be a call'),
        ({'tool_calls': 3}, 'tool_calls. should be a list'),
        (
            {'tool_calls': [{'name': 'f', 'arguments': '[' * 50_000}]},
            'arguments. is (JSON that is nested too deep|a text that is not JSON)',
        ),
        ({'content': b'a\xff'}, r'bytes that are no UTF-8 .* at byte 1'),
        ({'content': '\ud83d'}, r"surrogate '\\ud83d' without its other half"),
        ({'content': 'a', 'role': ['x']}, r"role' is \['x'\], which is none"),
    ],
)
def test_a_message_that_is_damaged_is_malformed(message, match):
  row = _with({'role': 'assistant', **message}, at=2)
  with pytest.raises(ValueError, match=match):
    _TASK.map(row)


def test_calls_are_read_as_readers_give_them():
  call = {'id': 'a', 'function': {'name': 'f', 'arguments': '{"x": 1}'}}
  wanted = _TASK.render({'messages': [*_MESSAGES[:2], _called([call])]})
  for calls in (
      json.dumps([call]),
      {k: [v] for k, v in call.items()},
      np.array([call], object),
      call,
      [{'function': None, 'name': 'f', 'arguments': {'x': 1}}],
  ):
    messages = [*_MESSAGES[:2], _called(calls)]
    assert _TASK.render({'messages': messages}) == wanted


def _called(calls):
  return {'role': 'assistant', 'content': None, 'tool_calls': calls}
