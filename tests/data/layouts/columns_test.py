"""Tests of columns that rows have and a task does not read."""

import dataclasses

from absl import logging
import numpy as np
import pytest

from gemma4_lora import g4

_TASK = g4.data.ChatTask(
    layout='messages', tokenizer=g4.testing.Gemma4Tokenizer(), max_length=64
)
_ROW = {
    'messages': [
        {'role': 'user', 'content': 'Hi.'},
        {'role': 'assistant', 'content': 'Yes.'},
    ]
}


@pytest.fixture(name='said')
def _said(monkeypatch):
  said = []
  monkeypatch.setattr(
      logging, 'log_first_n', lambda *args: said.append(args[1] % args[3:])
  )
  return said


def test_columns_that_nothing_reads_are_named_with_their_arguments(said):
  tools = [{'type': 'function', 'function': {'name': 'f'}}]
  row = _ROW | {'tools': tools, 'system': 'Be kind.', 'images': None}
  assert 'Be kind.' not in _TASK.render(row).text
  (line,) = said
  assert "the fields ['system', 'tools'], which are not read" in line
  assert "write in_system='system', in_tools='tools'" in line
  # As it says.
  task = dataclasses.replace(_TASK, in_system='system', in_tools='tools')
  assert 'Be kind.' in task.render(row).text
  assert len(said) == 1


@pytest.mark.parametrize('value', [None, '', [], np.zeros(0)])
def test_columns_without_a_value_are_nothing(value, said):
  _TASK.render(_ROW | {'tools': value, 'system': value, 'images': value})
  assert not said


def test_what_a_layout_reads_itself_is_no_such_column(said):
  task = dataclasses.replace(_TASK, layout='alpaca', in_messages=None)
  row = {'instruction': 'Hi.', 'output': 'Yes.', 'system': 'Be kind.'}
  text = task.render(row).text
  assert ('Be kind.' in text) != bool(said)
