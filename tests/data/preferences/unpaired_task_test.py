"""Tests of answers that are good or bad by themselves."""

import dataclasses

import jax
import numpy as np
import pytest

from gemma4_lora import g4

_TOKENIZER = g4.testing.Gemma4Tokenizer()
_TASK = g4.data.UnpairedTask(tokenizer=_TOKENIZER, max_length=32)
_USER = {'role': 'user', 'content': '2 + 2?'}
_MODEL = {'role': 'assistant', 'content': '4.'}
_ROW = {'prompt': '2 + 2?', 'completion': '4.', 'label': True}


def test_it_is_the_chosen_answer_of_a_pair():
  pair = g4.data.PreferenceTask(tokenizer=_TOKENIZER, max_length=32).map(
      {'prompt': '2 + 2?', 'chosen': '4.', 'rejected': '22.'}
  )
  got = _TASK.map(_ROW)
  assert got.pop('label').dtype == np.bool_
  wanted = {key: value[0] for key, value in pair.items()}
  jax.tree.map(np.testing.assert_array_equal, got, wanted)
  specs = _TASK.field_specs()
  shapes = {key: (value.shape, value.dtype) for key, value in specs.items()}
  example = _TASK.map(_ROW)
  assert shapes == {k: (v.shape, v.dtype) for k, v in example.items()}


@pytest.mark.parametrize(
    'changes, row',
    [
        ({'layout': 'messages'}, {'prompt': [_USER], 'completion': [_MODEL]}),
        ({}, {'prompt': [_USER], 'completion': [_MODEL]}),
        ({}, {'prompt': '2 + 2?', 'completion': [_USER, _MODEL]}),
        (
            {
                'layout': 'messages',
                'in_prompt': None,
                'in_completion': 'messages',
            },
            {'messages': [_USER, _MODEL]},
        ),
        (
            {'layout': 'alpaca', 'in_completion': 'output'},
            {'instruction': '2 + 2?', 'input': '', 'output': '4.'},
        ),
    ],
)
def test_forms_of_rows(changes, row):
  """Of TRL, and of LLaMA-Factory."""
  task = dataclasses.replace(_TASK, in_label='kto_tag', **changes)
  got = task.map(row | {'kto_tag': True})
  jax.tree.map(np.testing.assert_array_equal, got, _TASK.map(_ROW))


@pytest.mark.parametrize(
    'value, wanted',
    [
        (0, False),
        (1.0, True),
        (np.bool_(True), True),
        ('False', False),
        (b'true', True),
    ],
)
def test_labels(value, wanted):
  assert _TASK.map(_ROW | {'label': value})['label'] == wanted


@pytest.mark.parametrize(
    'row, match',
    [
        (_ROW | {'label': None}, "'label' should be true or false.*Got: None"),
        (_ROW | {'label': 2}, "'label' should be true or false"),
        (_ROW | {'label': [True]}, "'label' should be true or false"),
        (_ROW | {'completion': [_MODEL, _USER]}, 'does not end with the model'),
        (_ROW | {'completion': ''}, 'an empty answer'),
    ],
)
def test_malformed_rows(row, match):
  with pytest.raises(ValueError, match=match):
    _TASK.map(row)
