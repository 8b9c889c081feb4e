"""Rows of preferences as datasets have them: the prompt is taken once."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from gemma4_lora import g4

_TOKENIZER = g4.testing.Gemma4Tokenizer()
_TASK = g4.data.PreferenceTask(tokenizer=_TOKENIZER, max_length=96)
_LISTS = dataclasses.replace(_TASK, layout='messages')
_WHOLE = dataclasses.replace(_LISTS, in_prompt=None)

_USER = {'role': 'user', 'content': 'What is 2 + 2?'}
_SYSTEM = {'role': 'system', 'content': 'Be kind.'}
_GOOD = {'role': 'assistant', 'content': '4.'}
_BAD = {'role': 'assistant', 'content': '22.'}
_PARTS = [
    {'type': 'text', 'text': 'What is '},
    {'type': 'text', 'text': '2 + 2?'},
]
_NULLS = {'tool_calls': None, 'reasoning_content': None, 'name': None, 'id': 7}

# Other copies of the message of the user.
_COPIES = {
    'the same': _USER,
    'with fields that are None': _USER | _NULLS,
    'with white space': _USER | {'content': ' What is  2 + 2?\n'},
    'in parts': _USER | {'content': _PARTS},
    'in parts that have all fields': _USER
    | {'content': [part | {'image': None, 'index': None} for part in _PARTS]},
    'as arrays': _USER | {'content': np.array(_PARTS, object)},
}


def _texts(example):
  return [
      _TOKENIZER.decode([int(x) for x in tokens if x])
      for tokens in example['target']
  ]


def _said(system=''):
  turn = f'<|turn>system\n{system}<turn|>\n' if system else ''
  turn += '<|turn>user\nWhat is 2 + 2?<turn|>\n<|turn>model\n'
  return [f'{turn}4.<turn|>', f'{turn}22.<turn|>']


@pytest.mark.parametrize('copy', _COPIES.values(), ids=_COPIES)
@pytest.mark.parametrize('prompt', ['text', 'list'])
def test_a_prompt_beside_whole_conversations_is_taken_once(prompt, copy):
  row = {
      'prompt': _USER['content'] if prompt == 'text' else [_USER],
      'chosen': [copy, _GOOD],
      'rejected': [copy, _BAD | _NULLS],
  }
  assert _texts(_LISTS.map(row)) == _said()
  # Also if one answer alone has the prompt.
  assert _texts(_LISTS.map(row | {'rejected': [_BAD]})) == _said()


@pytest.mark.parametrize('copy', _COPIES.values(), ids=_COPIES)
def test_both_answers_have_the_tokens_of_one_prompt(copy):
  row = {'chosen': [_USER, _GOOD], 'rejected': [copy, _BAD]}
  assert _texts(_WHOLE.map(row)) == _said()


@pytest.mark.parametrize(
    'row',
    [
        {'prompt': [_USER], 'chosen': [_SYSTEM, _USER, _GOOD]},
        {'prompt': 'What is 2 + 2?', 'chosen': [_SYSTEM, _USER, _GOOD]},
        {'prompt': [_SYSTEM, _USER], 'chosen': [_USER, _GOOD]},
        {
            'prompt': [_SYSTEM, _USER],
            'chosen': [_SYSTEM | _NULLS, _USER, _GOOD],
        },
        {'prompt': [_SYSTEM, _USER], 'chosen': [_GOOD]},
        {'prompt': [_SYSTEM, _USER], 'chosen': '4.'},
    ],
)
def test_the_system_message_is_taken_from_where_it_is(row):
  rejected = row['chosen']
  if isinstance(rejected, list):
    rejected = [*rejected[:-1], _BAD]
  row = row | {'rejected': '22.' if isinstance(rejected, str) else rejected}
  assert _texts(_LISTS.map(row)) == _said('Be kind.')


def test_calls_of_tools_in_the_prompt_have_other_ids():
  def conversation(call_id, answer):
    arguments = {'a': 2} | ({'b': None} if call_id else {})
    call = {'function': {'name': 'add', 'arguments': arguments}}
    return [
        _USER,
        {'role': 'assistant', 'content': None, 'tool_calls': [call | call_id]},
        {'role': 'tool', 'content': '4\n' if 'y2' in call_id.values() else '4'}
        | ({'tool_call_id': call_id['id']} if call_id else {}),
        {'role': 'assistant', 'content': 'So:'},
        {'role': 'user', 'content': 'And?'},
        answer,
    ]

  row = {
      'chosen': conversation({'id': 'x1'}, _GOOD),
      'rejected': conversation({'id': 'y2'}, _BAD),
  }
  texts = _texts(_WHOLE.map(row))
  assert [text.rpartition('model\n')[2] for text in texts] == [
      '4.<turn|>',
      '22.<turn|>',
  ]
  with_prompt = row | {'prompt': conversation({}, _GOOD)[:-1]}
  texts = [text.replace(',b:null', '') for text in texts]
  assert _texts(_LISTS.map(with_prompt)) == texts


def test_other_answers_of_tools_make_another_prompt():
  def conversation(result, answer):
    call = {'function': {'name': 'add', 'arguments': {'a': 2}}}
    return [
        _USER,
        {'role': 'assistant', 'content': None, 'tool_calls': [call]},
        {'role': 'tool', 'content': result},
        _USER,
        answer,
    ]

  row = {
      'chosen': conversation('4', _GOOD),
      'rejected': conversation('5', _BAD),
  }
  match = r"message 1 is model: \"add\(\{'a': 2\}\) -> 4\" in one and .* -> 5"
  with pytest.raises(ValueError, match=match):
    _WHOLE.map(row)


def test_a_prompt_may_be_the_first_of_several_turns():
  """UltraFeedback's: a text, and conversations that go on behind it."""
  more = [
      {'role': 'assistant', 'content': 'Hm.'},
      {'role': 'user', 'content': 'Well?'},
  ]
  row = {
      'prompt': 'What is 2 + 2?',
      'chosen': [_USER, *more, _GOOD],
      'rejected': [_USER, *more, _BAD],
  }
  example = _LISTS.map(row)
  assert _texts(example)[0].count('2 + 2') == 1
  trained = example['target'][0][example['loss_mask'][0]]
  assert _TOKENIZER.decode(trained.tolist()) == '4.<turn|>'


@pytest.mark.parametrize(
    'layout, in_prompt, row',
    [
        (
            'sharegpt',
            'conversations',
            {
                'conversations': [{'from': 'human', 'value': 'What is 2 + 2?'}],
                'chosen': {'from': 'gpt', 'value': '4.'},
                'rejected': {'from': 'gpt', 'value': '22.'},
            },
        ),
        (
            'messages',
            'messages',
            {'messages': [_USER], 'chosen': _GOOD, 'rejected': _BAD},
        ),
        (
            'alpaca',
            'prompt',
            {
                'instruction': 'What is 2',
                'input': '+ 2?',
                'chosen': '4.',
                'rejected': '22.',
            },
        ),
        (
            'prompt_response',
            'prompt',
            {'prompt': [_USER], 'chosen': [_GOOD], 'rejected': [_BAD]},
        ),
        (
            'prompt_response',
            'prompt',
            {
                'prompt': _USER['content'],
                'chosen': [_USER, _GOOD],
                'rejected': [_USER, _BAD],
            },
        ),
        (
            'hh_rlhf',
            None,
            {
                'chosen': '\n\nHuman: What is 2 + 2?\n\nAssistant: 4.',
                'rejected': '\n\nHuman: What is 2 + 2? \n\nAssistant: 22. ',
            },
        ),
        (
            'hh_rlhf',
            'prompt',
            {
                'prompt': '\n\nHuman: What is 2 + 2?\n\nAssistant:',
                'chosen': ' 4.',
                'rejected': ' 22.',
            },
        ),
        (
            'hh_rlhf',
            'prompt',
            {
                'prompt': 'What is 2 + 2?',
                'chosen': '\n\nHuman: What is 2 + 2?\n\nAssistant: 4.',
                'rejected': '\n\nAssistant: 22.',
            },
        ),
        (
            'messages',
            'prompt',
            {
                'prompt': None,
                'chosen': [_USER, _GOOD],
                'rejected': [_USER, _BAD],
            },
        ),
    ],
)
def test_forms_of_rows(layout, in_prompt, row):
  task = dataclasses.replace(_TASK, layout=layout, in_prompt=in_prompt)
  example = task.map(row | {'other': 3})
  texts = [text.replace('2\n+', '2 +') for text in _texts(example)]
  assert texts == _said()
  assert set(example) == {'input', 'target', 'loss_mask', 'other'}


@pytest.mark.parametrize(
    'task, row, match',
    [
        (
            _WHOLE,
            {
                'chosen': [_USER, _GOOD],
                'rejected': [_USER | {'content': 'Why?'}, _BAD],
            },
            "'chosen' and 'rejected' have different prompts: message 0 is user: 'What is 2",
        ),
        (
            _WHOLE,
            {'chosen': [_SYSTEM, _USER, _GOOD], 'rejected': [_USER, _BAD]},
            "different prompts: message 0 is system: 'Be kind.'",
        ),
        (
            _WHOLE,
            {'chosen': [_USER, _GOOD, _USER], 'rejected': [_USER, _BAD]},
            "'chosen' does not end with the model's answer, but with a message of the user",
        ),
        (
            _WHOLE,
            {'chosen': [], 'rejected': [_USER, _BAD]},
            "'chosen' does not end .* but with nothing",
        ),
        (
            _LISTS,
            {
                'prompt': 'Why?',
                'chosen': [_USER, _GOOD],
                'rejected': [_USER, _BAD],
            },
            "'prompt' and 'chosen' have different prompts",
        ),
        (
            _LISTS,
            {
                'prompt': [_SYSTEM, _USER],
                'chosen': [_SYSTEM | {'content': 'Be rude.'}, _USER, _GOOD],
                'rejected': [_BAD],
            },
            "'prompt' and 'chosen' have different prompts: .*Be rude",
        ),
        (
            _LISTS,
            {'prompt': [_USER], 'chosen': [_SYSTEM, _GOOD], 'rejected': [_BAD]},
            "'chosen' has a system message behind the prompt",
        ),
        (
            _LISTS,
            {'prompt': None, 'chosen': [_GOOD], 'rejected': [_BAD]},
            "'prompt' has no prompt, and 'chosen' does not begin",
        ),
        (
            _LISTS,
            {'prompt': [_USER], 'chosen': [_USER], 'rejected': [_BAD]},
            "'chosen' does not end with the model's answer",
        ),
        (
            _TASK,
            {
                'prompt': 'a',
                'chosen': '\n\nHuman: a\n\nAssistant: b',
                'rejected': 'c',
            },
            "'chosen' is a dialogue in one text .* Set layout='hh_rlhf', and in_prompt=None if",
        ),
        (
            dataclasses.replace(_WHOLE, layout='hh_rlhf'),
            {
                'chosen': 'Human: a\n\nAssistant: b\n\nHuman: c',
                'rejected': 'Human: a\n\nAssistant: b',
            },
            "'chosen' does not end",
        ),
        (
            dataclasses.replace(_WHOLE, layout='hh_rlhf'),
            {
                'chosen': '\n\nHuman: a\n\nAssistant:',
                'rejected': 'Human: a\n\nAssistant: b',
            },
            'an empty answer',
        ),
    ],
)
def test_rows_that_compare_nothing_are_malformed(task, row, match):
  with pytest.raises(ValueError, match=match):
    task.map(row)


def test_dialogues_are_conversations_too(tmp_path):
  """hh-rlhf for supervised training; `Human:` in the middle of a line is text."""
  text = '\n\nHuman: Say Human: x\n\nAssistant: Hi.\n\nYes.\n\nHuman:More\n\nAssistant: Bye.'
  task = g4.data.ChatTask(layout='hh_rlhf', tokenizer=_TOKENIZER, max_length=64)
  assert task.render({'chosen': text}).text == (
      '<|turn>user\nSay Human: x<turn|>\n<|turn>model\nHi.\n\nYes.<turn|>\n'
      '<|turn>user\nMore<turn|>\n<|turn>model\nBye.<turn|>'
  )
  with pytest.raises(ValueError, match="'chosen' does not begin with 'Human:'"):
    task.map({'chosen': 'Hello'})


def test_a_prompt_and_its_completion_are_lists():
  """TRL's rows for supervised training: what the prompt says is not trained."""
  before = [
      _SYSTEM,
      {'role': 'user', 'content': 'Hi.'},
      {'role': 'assistant', 'content': 'Hello.'},
      _USER,
  ]
  task = g4.data.ChatTask(
      in_response='completion', tokenizer=_TOKENIZER, max_length=96
  )
  wanted = g4.data.ChatTask(
      layout='messages', loss_on='last', tokenizer=_TOKENIZER, max_length=96
  ).map({'messages': [*before, _GOOD]})
  for prompt, completion in (
      (before, [_GOOD]),
      (before, _GOOD),
      (before, '4.'),
      (before, [*before, _GOOD]),
  ):
    got = task.map({'prompt': prompt, 'completion': completion})
    jax.tree.map(np.testing.assert_array_equal, got, wanted)
  # In order of what is said, all of a completion is trained.
  rendered = task.render(
      {'prompt': [_USER], 'completion': [_GOOD, _USER, _BAD]}
  )
  assert rendered.trained == '4.<turn|>22.<turn|>'


def test_messages_may_be_json():
  """Columns of CSV and JSONL; an answer that is other JSON stays text."""
  row = {
      'prompt': json.dumps([_USER]),
      'chosen': json.dumps([_USER, _GOOD]),
      'rejected': json.dumps(_BAD),
  }
  assert _texts(_LISTS.map(row)) == _said()
  row['rejected'] = '[{"role": 22}]'
  assert _texts(_LISTS.map(row))[1].endswith('model\n[{"role": 22}]<turn|>')
