"""Tests of weights: of messages, of their tokens, and in losses."""

import dataclasses

from kauldron import kd
import numpy as np
import pytest

from gemma4_lora import g4

_TASK = g4.data.ChatTask(
    layout='messages', tokenizer=g4.testing.Gemma4Tokenizer(), max_length=256
)
_MESSAGES = [
    {'role': 'user', 'content': 'Hello.'},
    {'role': 'assistant', 'content': 'Où ?'},
]


def test_weights_of_messages_are_those_of_their_tokens():
  messages = [
      *_MESSAGES,
      {'role': 'user', 'content': 'a'},
      {'role': 'assistant', 'content': 'b', 'weight': 0},
      {'role': 'user', 'content': 'c'},
      {'role': 'assistant', 'content': 'd', 'weight': 0.5},
  ]
  with pytest.raises(
      ValueError, match='0.5, which a mask .*token_weights=True'
  ):
    _TASK.map({'messages': messages})
  task = dataclasses.replace(_TASK, token_weights=True)
  out = task.map({'messages': messages})
  assert out['loss_mask'].dtype == np.float32
  decoded = {
      weight: task.tokenizer.decode(out['target'][out['loss_mask'] == weight])
      for weight in (1, 0.5)
  }
  assert decoded == {1: 'Où ?<turn|>', 0.5: 'd<turn|>'}


def test_a_weighted_mask_is_what_losses_take():
  out = dataclasses.replace(_TASK, token_weights=True).map(
      {'messages': [_MESSAGES[0], dict(_MESSAGES[1], weight=0.5)]}
  )
  values = np.ones_like(out['loss_mask'])
  state = kd.losses.base.AllReduceMean.from_values(values, out['loss_mask'])
  assert state.compute() == 1
  assert state.count == 0.5 * (out['loss_mask'] > 0).sum()
