"""Tests of values that JSON does not have, in calls, answers and tools."""

import datetime

import numpy as np
import pytest

from gemma4_lora import g4

_TASK = g4.data.ChatTask(
    layout='messages', tokenizer=g4.testing.Gemma4Tokenizer(), max_length=256
)


def _row(arguments, answer='1'):
  call = {'id': 'a', 'function': {'name': 'f', 'arguments': arguments}}
  return {
      'messages': [
          {'role': 'user', 'content': 'Hi.'},
          {'role': 'assistant', 'content': '', 'tool_calls': [call]},
          {'role': 'tool', 'tool_call_id': 'a', 'content': answer},
          {'role': 'assistant', 'content': 'Yes.'},
      ]
  }


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'a': float('nan')}, r'arguments of f.a. is nan, a float, which JSON'),
        ('{"a": [1, Infinity]}', r'arguments of f.a\[1\]. is inf'),
        ({'a': {1}}, r'is \{1\}, a set'),
        ({'a': datetime.date(2020, 1, 1)}, 'a date, which JSON'),
        ({'a': {1: 2}}, 'has the key 1, and keys of JSON are texts'),
    ],
)
def test_they_are_malformed(arguments, message):
  with pytest.raises(ValueError, match=message):
    _TASK.render(_row(arguments))


def test_arrays_of_numbers_are_lists():
  row = _row({'a': np.array([1, 2]), 'b': [{'c': np.array([[0.5]])}]})
  text = _TASK.render(row).text
  assert 'call:f{a:[1,2],b:[{c:[[0.5]]}]}' in text
