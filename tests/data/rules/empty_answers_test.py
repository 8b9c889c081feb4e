"""Tests of answers that say nothing."""

import dataclasses

import pytest

from gemma4_lora import g4

_TASK = g4.data.ChatTask(
    layout='messages', tokenizer=g4.testing.Gemma4Tokenizer(), max_length=256
)
_USER = {'role': 'user', 'content': 'Hi.'}
_CALL = {'function': {'name': 'f', 'arguments': {}}}


def _row(*messages):
  return {
      'messages': [
          m if 'role' in m else dict(m, role='assistant') for m in messages
      ]
  }


@pytest.mark.parametrize(
    'messages',
    [
        [_USER, {'content': ''}],
        [_USER, {'content': ' \n'}],
        [_USER, {'content': '\u200b\ufeff '}],
        [_USER, {'content': []}],
        [_USER, {'content': [{'type': 'text', 'text': ''}]}],
        [_USER, {'content': ''}, _USER, {'content': 'Yes.'}],
        [_USER, {'content': 'Yes.'}, {'content': ''}],
        [
            _USER,
            {'tool_calls': [_CALL]},
            {'role': 'tool', 'content': '1'},
            {'content': ''},
        ],
    ],
)
def test_an_empty_answer_is_malformed_unless_it_is_meant(messages):
  with pytest.raises(ValueError, match=r"messages\[\d\]' is an empty answer"):
    _TASK.render(_row(*messages))
  task = dataclasses.replace(_TASK, empty_answers='train')
  assert task.map(_row(*messages)) is not None


def test_an_empty_answer_that_is_not_trained_is_as_it_is():
  messages = [
      _USER,
      {'content': '', 'train': False},
      _USER,
      {'content': 'Yes.'},
  ]
  assert _TASK.render(_row(*messages)).trained == 'Yes.<turn|>'


@pytest.mark.parametrize('message', [{'content': None}, {}])
def test_an_answer_that_is_not_there_is_malformed_in_any_case(message):
  task = dataclasses.replace(_TASK, empty_answers='train')
  with pytest.raises(ValueError, match="'content', and no tool calls either"):
    task.render(_row(_USER, message))


@pytest.mark.parametrize(
    'thinking, counts',
    [
        ('keep', (True, True)),
        ('strip', (False, True)),
        ('strip_all', (False, False)),
        ('mask', (False, False)),
        ('empty', (False, False)),
    ],
)
def test_a_thought_alone_is_an_answer_where_it_is_trained(thinking, counts):
  task = dataclasses.replace(_TASK, thinking=thinking)
  thought = {'content': '', 'reasoning': 'Hm.'}
  for row, is_answer in (
      (_row(_USER, thought, _USER, {'content': 'Yes.'}), counts[0]),
      (_row(_USER, {'content': 'Yes.'}, _USER, thought), counts[1]),
  ):
    if is_answer:
      assert 'Hm.' in task.render(row).trained
    else:
      with pytest.raises(ValueError, match=f"empty with thinking='{thinking}'"):
        task.render(row)


def test_both_texts_of_pairs_are_checked():
  task = g4.data.PreferenceTask(
      tokenizer=_TASK.tokenizer, max_length=64, max_malformed=9
  )
  row = {'prompt': 'a', 'chosen': 'b', 'rejected': ''}
  assert task.map(row) is None
  (reason,) = task.malformed.reasons
  assert 'is an empty answer' in reason
  task = dataclasses.replace(task, empty_answers='train')
  assert task.map(row) is not None


def test_an_unknown_policy_is_an_error():
  for name in ('empty_answers', 'inline_markup', 'null_arguments'):
    with pytest.raises(ValueError, match=f"{name}='x' is none of"):
      dataclasses.replace(_TASK, **{name: 'x'})


@pytest.mark.parametrize('rest', [(), (_USER, {'content': 'Yes.'})])
def test_the_end_behind_a_tools_answer_has_no_loss(rest):
  answer = {'role': 'tool', 'content': '7'}
  row = _row(_USER, {'tool_calls': [_CALL]}, answer, *rest)
  call = '<|tool_call>call:f{}<tool_call|><|tool_response>'
  said = 'Yes.<turn|>' if rest else ''
  assert _TASK.render(row).trained == call + said
  task = dataclasses.replace(_TASK, empty_answers='train')
  assert task.render(row).trained == f'{call}<turn|>{said}'
  trained = [int(t.map(row)['loss_mask'].sum()) for t in (_TASK, task)]
  assert trained[0] + 1 == trained[1]
