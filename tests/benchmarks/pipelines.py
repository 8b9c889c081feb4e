"""Chats as batches of tokens, by our task and by gemma's."""

from collections.abc import Iterator
from typing import Any

from gemma import gm
from kauldron import kd

from gemma4_lora import g4

_BATCH_SIZE = 32
_MAX_LENGTH = 128  # In tokens: Gemma 3's turns take more of them.


def make(name: str) -> Iterator[Any]:
  """Returns batches without end.

  Args:
    name: `'ours'` for `g4.data.ChatTask`, anything else for gemma's
      `Seq2SeqTask`, with Gemma 3's turns.
  """
  tokenizer = g4.testing.Gemma4Tokenizer()
  kwargs = dict(
      in_prompt='en',
      in_response='fr',
      tokenizer=tokenizer,
      max_length=_MAX_LENGTH,
  )
  if name == 'ours':
    task = g4.data.ChatTask(**kwargs)
  else:
    task = gm.data.Seq2SeqTask(
        **kwargs,
        out_input='input',
        out_target='target',
        out_target_mask='loss_mask',
    )
  ds = kd.data.py.DataSource(
      data_source=g4.testing.EnFrPairs(split='train'),
      shuffle=True,
      seed=0,
      batch_size=_BATCH_SIZE,
      num_workers=0,
      transforms=[task],
  )
  return iter(ds)
