"""Checks that the data have Gemma 4's turns, not Gemma 3's."""

from typing import Any

from absl import logging
from gemma import gm
import jax
from kauldron import kd
from kauldron import kontext
import numpy as np

from gemma4_lora import data
from gemma4_lora.data import _pipeline
from gemma4_lora.train.checks import _empty_thoughts

_TURN = gm.text.Gemma4Tokenizer.special_tokens.START_OF_TURN
_VERSION = gm.text.Gemma4Tokenizer.VERSION
_OLD_TASKS = (gm.data.Seq2SeqTask, gm.data.ContrastiveTask)


def check(trainer: kd.train.Trainer, batch: Any) -> None:
  """Warns if conversations are not spelled as Gemma 4's.

  Args:
    trainer: The trainer.
    batch: The first batch, on devices.
  """
  _empty_thoughts.check(trainer)
  parts = list(_pipeline.walk(trainer.train_ds))
  reasons = [
      f'{type(x).__name__} is of Gemma {x.VERSION}'
      for x in parts
      # 0: a class of the user, which need not have a version.
      if isinstance(x, gm.text.Tokenizer) and x.VERSION not in (0, _VERSION)
  ]
  is_text = any(isinstance(x, data.TextTask) for x in parts)
  if not reasons and not is_text and _lacks_turns(trainer.model, batch):
    reasons = [f'no row of the first batch has <|turn> (token {_TURN})']
    # Exactly these classes: a subclass may write other turns.
    reasons += [
        f"gm.data.{type(x).__name__} writes Gemma 3's turns"
        for x in parts
        if type(x) in _OLD_TASKS
    ]
  if reasons:
    logging.warning(
        'g4.train.TrainStep: train_ds does not spell conversations as Gemma 4'
        ' reads them: %s. Use g4.data.ChatTask(tokenizer='
        'gm.text.Gemma4Tokenizer(), …), which spells its turns, and'
        ' g4.data.show(…) to see them. For plain text, this is as it should be.',
        '; '.join(reasons),
    )


def _lacks_turns(model: Any, batch: Any) -> bool:
  """Whether no turn begins in the tokens of a batch that this host has."""
  key = kontext.get_keypaths(model).get('tokens')
  if not isinstance(key, str):
    return False
  num_tokens = getattr(getattr(model, 'config', None), 'num_embed', 0)
  tokens = kontext.get_by_path({'batch': batch}, key, default=None)
  if not isinstance(tokens, jax.Array) or num_tokens <= _TURN:
    return False
  return not any(
      np.any(np.asarray(shard.data) == _TURN)
      for shard in tokens.addressable_shards
  )
