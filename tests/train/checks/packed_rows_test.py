"""Packed rows for a model that is not told of them are an error, by any step."""

import dataclasses

from kauldron import kd
import pytest

from gemma4_lora import g4
from gemma4_lora.train.checks import _packed_rows
from tests.lib import models
from tests.lib import training

_TASK = g4.data.ChatTask(
    in_prompt='en',
    in_response='fr',
    tokenizer=g4.testing.Gemma4Tokenizer(),
    max_length=96,
)
_PACKED = g4.data.PackedSource(
    data_source=g4.testing.EnFrPairs(split='test'), transforms=[_TASK]
)


def _dataset(source, transforms=()):
  return kd.data.py.DataSource(
      data_source=source,
      shuffle=False,
      num_epochs=1,
      batch_size=8,
      num_workers=0,
      transforms=list(transforms),
  )


def _trainer(tmp_path, *, positions=None, train_ds=None, **kwargs):
  model = models.base(cut=models.one_layer)
  model = g4.nn.LoRA(rank=2, targets='q', model=model, positions=positions)
  trainer = training.make_trainer(model, tmp_path, num_train_steps=1, **kwargs)
  return dataclasses.replace(trainer, train_ds=train_ds or _dataset(_PACKED))


@pytest.mark.parametrize('positions', [None, 'batch.other'])
def test_a_model_that_does_not_read_the_positions(positions, tmp_path):
  trainer = _trainer(tmp_path, positions=positions)
  with pytest.raises(
      ValueError,
      match=(
          r"train_ds has rows .*'batch.positions'.* reads positions="
          rf"{positions!r}: .*g4.nn.LoRA\(positions='batch.positions'"
      ),
  ):
    trainer.train()


def test_an_evaluator_too(tmp_path):
  pairs = _dataset(g4.testing.EnFrPairs(split='test'), [_TASK])
  packed = kd.evals.Evaluator(
      run=kd.evals.EveryNSteps(n=1), ds=_dataset(_PACKED)
  )
  alone = kd.evals.Evaluator(run=kd.evals.EveryNSteps(n=1), ds=pairs)
  trainer = _trainer(tmp_path, train_ds=pairs, evals={'a': alone, 'b': packed})
  with pytest.raises(ValueError, match=r'^evals\.b\.ds has rows of several'):
    trainer.train()


def test_positions_at_another_key(tmp_path):
  source = dataclasses.replace(_PACKED, out_positions='at')
  with pytest.raises(ValueError, match="'batch.at'.* positions='batch.pos"):
    _trainer(
        tmp_path, positions='batch.positions', train_ds=_dataset(source)
    ).train()
  trainer = _trainer(tmp_path, positions='batch.at', train_ds=_dataset(source))
  _packed_rows.check(trainer)
