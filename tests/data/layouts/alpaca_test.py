"""Tests of rows of an instruction, its input and the output."""

import dataclasses

import numpy as np
import pytest

from gemma4_lora import g4

_COMMON = dict(tokenizer=g4.testing.Gemma4Tokenizer(), max_length=256)
_TASK = g4.data.ChatTask(layout='alpaca', **_COMMON)
_MESSAGES = g4.data.ChatTask(layout='messages', **_COMMON)


def _said(*texts, system=None):
  roles = ('user', 'assistant') * len(texts)
  messages = [
      {'role': role, 'content': text}
      for role, text in zip(roles, texts, strict=False)
  ]
  if system:
    messages.insert(0, {'role': 'system', 'content': system})
  return _MESSAGES.render({'messages': messages})


@pytest.mark.parametrize(
    ('row', 'want'),
    [
        (dict(input='Yes.'), _said('Say it in French.\nYes.', 'Oui.')),
        (dict(input=''), _said('Say it in French.', 'Oui.')),
        (dict(input=None, system=''), _said('Say it in French.', 'Oui.')),
        ({}, _said('Say it in French.', 'Oui.')),
        (dict(instruction='', input='Hi.'), _said('Hi.', 'Oui.')),
        (
            dict(history='[["Hi.", "Hello."]]'),
            _said('Hi.', 'Hello.', 'Say it in French.', 'Oui.'),
        ),
        (
            dict(system='Be kind.', history=[['Hi.', 'Hello.']]),
            _said(
                'Hi.', 'Hello.', 'Say it in French.', 'Oui.', system='Be kind.'
            ),
        ),
    ],
)
def test_what_a_row_says(row, want):
  row = {'instruction': 'Say it in French.', 'output': 'Oui.', **row}
  assert _TASK.render(row) == want
  assert set(_TASK.map(row)) == {'input', 'target', 'loss_mask'}


def test_rows_of_dolly():
  row = {
      'instruction': 'Say it in French.',
      'context': 'Yes.',
      'response': 'Oui.',
  }
  assert _TASK.render(row) == _said('Say it in French.\nYes.', 'Oui.')
  assert set(_TASK.map(row)) == {'input', 'target', 'loss_mask'}


def test_other_columns_and_a_system_column():
  task = dataclasses.replace(
      _TASK, in_prompt='task', in_response='answer', in_system='system'
  )
  row = {'task': 'Go.', 'answer': 'Done.', 'system': 'Be kind.'}
  assert task.render(row) == _said('Go.', 'Done.', system='Be kind.')


@pytest.mark.parametrize(
    ('row', 'message'),
    [
        ({'output': 'a'}, "no field 'instruction'"),
        ({'instruction': 'a', 'output': 1}, "'output' should be text"),
        (
            {'instruction': 'a', 'input': 1, 'output': 'b'},
            "'input' should be t",
        ),
        (
            {'instruction': 'a', 'output': 'b', 'history': [['x']]},
            "'history' should be a list of pairs",
        ),
    ],
)
def test_malformed_rows(row, message):
  with pytest.raises((ValueError, KeyError), match=message):
    _TASK.map(row)


def test_pairs_of_answers():
  task = g4.data.PreferenceTask(
      layout='alpaca', in_prompt='instruction', **_COMMON
  )
  row = {'instruction': 'a', 'input': 'b', 'chosen': 'c', 'rejected': 'd'}
  row |= {'system': 'Be kind.', 'history': [['x', 'y']]}
  example = task.map(row)
  assert set(example) == {'input', 'target', 'loss_mask'}
  for tokens, answer in zip(example['target'], 'cd', strict=True):
    text = _COMMON['tokenizer'].decode(tokens[tokens > 0])
    sft = {k: v for k, v in row.items() if k not in ('chosen', 'rejected')}
    assert text == _TASK.render(sft | {'output': answer}).text


def test_a_history_of_numbers_says_what_it_is():
  row = {'instruction': 'a', 'output': 'b', 'history': np.zeros(3)}
  with pytest.raises(ValueError, match=r"'history' should be .*array\(\[0"):
    _TASK.render(row)
