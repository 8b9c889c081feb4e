"""Tests of what all layouts share: system text, and which keys are read."""

import dataclasses

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


def test_two_system_messages_are_an_error():
  task = dataclasses.replace(_TASK, in_system='system')
  with pytest.raises(ValueError, match="'system' is a second system message"):
    task.map({'messages': _MESSAGES, 'system': 'a'})


def test_inputs_of_all_layouts_are_dropped():
  task = dataclasses.replace(
      _TASK, in_messages='chat', in_system='s', in_tools='t'
  )
  row = {'chat': _MESSAGES[1:], 's': 'a', 't': None, 'id': 7}
  assert set(task.map(row)) == {'input', 'target', 'loss_mask', 'id'}


@pytest.mark.parametrize('system', ['', None, b'', ' \n'])
def test_an_empty_system_column_is_no_system_turn(system):
  task = dataclasses.replace(_TASK, in_system='system')
  for messages in (_MESSAGES, _MESSAGES[1:]):
    rendered = task.render({'messages': messages, 'system': system})
    assert rendered == _TASK.render({'messages': messages})


def test_a_system_column_that_is_no_text_is_malformed():
  task = dataclasses.replace(_TASK, in_system='system')
  with pytest.raises(ValueError, match="'system' should be text .* int: 3"):
    task.render({'messages': _MESSAGES[1:], 'system': 3})
