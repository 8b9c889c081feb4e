"""Data that are spelled for another Gemma are warned of, once."""

import dataclasses

from gemma import gm
import jax.numpy as jnp
from kauldron import kd
import pytest

from gemma4_lora import g4
from gemma4_lora.train.checks import _first_batch
from tests.lib import models
from tests.lib import training

_FIELDS = dict(in_prompt='en', in_response='fr', max_length=8)


def _check(*tokens, transforms=(), **kwargs):
  model = models.lora(rank=2, cut=models.one_layer)
  trainer = training.make_trainer(
      model,
      '/unused',
      num_train_steps=1,
      checkpointer=kd.ckpts.NoopCheckpointer(),
      **kwargs,
  )
  ds = dataclasses.replace(trainer.train_ds, transforms=list(transforms))
  trainer = dataclasses.replace(trainer, train_ds=ds)
  _first_batch.check(trainer, {'input': jnp.array([tokens])})


def test_turns_are_looked_for(caplog):
  _check(2, 105, 7)
  assert not caplog.text
  _check(2, 106, 7)
  assert (
      caplog.text.count('no row of the first batch has <|turn> (token 105)')
      == 1
  )
  assert 'g4.data.ChatTask(tokenizer=gm.text.Gemma4Tokenizer()' in caplog.text


@pytest.mark.parametrize(
    ('task', 'turn', 'wanted'),
    [
        (
            gm.data.Seq2SeqTask(
                tokenizer=g4.testing.Gemma4Tokenizer(),
                out_input='input',
                out_target='target',
                out_target_mask='mask',
                **_FIELDS,
            ),
            9,
            "(token 105); gm.data.Seq2SeqTask writes Gemma 3's turns",
        ),
        (
            dataclasses.make_dataclass('Own', ['tokenizer'])(
                gm.text.Gemma3Tokenizer(path='/unused')
            ),
            105,
            'Gemma3Tokenizer is of Gemma 3',
        ),
    ],
)
def test_parts_of_gemma_3(task, turn, wanted, caplog):
  """Tokens would not tell all: Gemma 3's tokenizer has the same number."""
  _check(2, turn, 7, transforms=[task])
  assert caplog.text.count(wanted) == 1


def test_ours(caplog):
  task = g4.data.ChatTask(tokenizer=g4.testing.Gemma4Tokenizer(), **_FIELDS)
  _check(2, 105, 7, transforms=[task])
  assert not caplog.text


def test_plain_texts_have_no_turns(caplog):
  task = g4.data.TextTask(tokenizer=g4.testing.Gemma4Tokenizer(), max_length=8)
  _check(2, 106, 7, transforms=[task])
  assert not caplog.text
