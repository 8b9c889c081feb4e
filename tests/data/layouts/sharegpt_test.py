"""Tests of messages of from and value."""

import pytest

from gemma4_lora import g4

_COMMON = dict(tokenizer=g4.testing.Gemma4Tokenizer(), max_length=256)
_TASK = g4.data.ChatTask(layout='sharegpt', **_COMMON)
_MESSAGES = g4.data.ChatTask(layout='messages', **_COMMON)


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
  sharegpt = _TASK.render({'conversations': values})
  assert sharegpt == _MESSAGES.render({'messages': messages})
  assert 'response:f{value:<|"|>one<|"|>}' in sharegpt.text


def test_a_malformed_message_is_an_error():
  with pytest.raises(ValueError, match=r"'conversations\[0\]' has no 'value'"):
    _TASK.map({'conversations': [{'from': 'human', 'text': 'a'}]})
