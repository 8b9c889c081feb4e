"""Checks that a model reads the positions of packed rows."""

from collections.abc import Iterator
from typing import Any

from kauldron import kd
from kauldron import kontext

from gemma4_lora import data
from gemma4_lora.data import _pipeline


def check(trainer: kd.train.Trainer) -> None:
  """Raises if conversations of a row would see each other.

  No other check sees it: a batch may have fields that are not read.

  Raises:
    ValueError: A dataset has packed rows, whose positions the model does not
      read.
  """
  key = kontext.get_keypaths(trainer.model).get('positions')
  for name, ds in _datasets(trainer):
    for part in _pipeline.walk(ds):
      if not isinstance(part, data.PackedSource):
        continue
      wanted = f'batch.{part.out_positions}'
      if key != wanted:
        raise ValueError(
            f'{name} has rows of several conversations: g4.data.PackedSource'
            f' writes their positions to {wanted!r}. The model reads'
            f' positions={key!r}: conversations of a row would see each other.'
            f' Write g4.nn.LoRA(positions={wanted!r}, ...), or PackedSource('
            'out_positions=...).'
        )


def _datasets(trainer: kd.train.Trainer) -> Iterator[tuple[str, Any]]:
  yield 'train_ds', trainer.train_ds
  for name, evaluator in (trainer.evals or {}).items():
    # None: the training dataset. A trainer that is not resolved has
    # placeholders.
    if isinstance(ds := getattr(evaluator, 'ds', None), kd.data.Pipeline):
      yield f'evals.{name}.ds', ds
