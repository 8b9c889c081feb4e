"""Tests of items of OpenAI's Responses API."""

import dataclasses

import pytest

from gemma4_lora import g4

_COMMON = dict(tokenizer=g4.testing.Gemma4Tokenizer(), max_length=512)
_TASK = g4.data.ChatTask(layout='responses', in_tools='tools', **_COMMON)
_MESSAGES = g4.data.ChatTask(layout='messages', in_tools='tools', **_COMMON)


def _call(name, call_id):
  return {
      'type': 'function_call',
      'id': f'fc_{call_id}',
      'call_id': call_id,
      'name': name,
      'arguments': '{"x": 1}',
  }


def _answer(call_id, text):
  return {'type': 'function_call_output', 'call_id': call_id, 'output': text}


_ROW = {
    'instructions': 'Be kind.',
    'input': [
        {'role': 'user', 'content': [{'type': 'input_text', 'text': 'Go.'}]},
        {
            'type': 'reasoning',
            'summary': [{'type': 'summary_text', 'text': 'Hm.'}],
        },
        {
            'type': 'message',
            'role': 'assistant',
            'content': [{'type': 'output_text', 'text': 'Wait.'}],
        },
        _call('f', 'a'),
        _call('g', 'b'),
        _answer('b', 'two'),
        _answer('a', 'one'),
    ],
    'output': [
        {'type': 'reasoning', 'summary': [], 'encrypted_content': 'gAAA'},
        {
            'type': 'message',
            'role': 'assistant',
            'content': [{'type': 'output_text', 'text': 'Done.'}],
        },
    ],
    'tools': [{'type': 'function', 'name': 'f', 'strict': True}],
}
_SAME = {
    'messages': [
        {'role': 'system', 'content': 'Be kind.'},
        {'role': 'user', 'content': [{'type': 'text', 'text': 'Go.'}]},
        {
            'role': 'assistant',
            'reasoning': 'Hm.',
            'content': [{'type': 'text', 'text': 'Wait.'}],
            'tool_calls': [
                {'id': i, 'function': {'name': name, 'arguments': {'x': 1}}}
                for i, name in (('a', 'f'), ('b', 'g'))
            ],
        },
        {'role': 'tool', 'tool_call_id': 'b', 'content': 'two'},
        {'role': 'tool', 'tool_call_id': 'a', 'content': 'one'},
        {'role': 'assistant', 'content': [{'type': 'text', 'text': 'Done.'}]},
    ],
    'tools': [{'name': 'f'}],
}


@pytest.mark.parametrize('template', ['dialog', 'transformers'])
def test_what_a_row_says(template):
  task, same = (
      dataclasses.replace(x, template=template) for x in (_TASK, _MESSAGES)
  )
  assert task.render(_ROW) == same.render(_SAME)
  assert set(task.map(_ROW)) == {'input', 'target', 'loss_mask'}


def test_texts_in_the_place_of_items():
  row = {'input': 'Go.', 'output': 'Done.', 'instructions': None, 'tools': ''}
  assert _TASK.render(row).text == (
      '<|turn>user\nGo.<turn|>\n<|turn>model\nDone.<turn|>'
  )


def test_parts_of_responses_in_messages():
  messages = [
      {
          'role': 'user',
          'content': [
              {'type': 'input_image', 'image_url': 'x'},
              {'type': 'input_text', 'text': 'What?'},
          ],
      },
      {
          'role': 'assistant',
          'content': [{'type': 'output_text', 'text': 'A cat.'}],
      },
  ]
  text = _MESSAGES.render({'messages': messages, 'tools': None}).text
  assert text == (
      '<|turn>user\n<|image|>What?<turn|>\n<|turn>model\nA cat.<turn|>'
  )


@pytest.mark.parametrize(
    ('row', 'message'),
    [
        ({'input': []}, "'input' has no messages"),
        (
            {'input': [{'type': 'web_search_call'}]},
            "'web_search_call'. Gemma 4",
        ),
        ({'input': [{'role': 'user', 'content': []}]}, 'says nothing'),
        ({'input': [_answer('a', 'b')]}, 'calls no tool'),
        ({'input': 'a', 'tools': [{'type': 'web_search'}]}, 'is no function'),
    ],
)
def test_malformed_rows(row, message):
  with pytest.raises(ValueError, match=message):
    _TASK.map({'tools': None, **row})
