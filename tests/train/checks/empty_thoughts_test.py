"""Prompts that the model's server never gives are warned of."""

import dataclasses

from kauldron import kd
import pytest

from gemma4_lora import g4
from gemma4_lora.train.checks import _first_batch
from tests.lib import training

_TASK = g4.data.ChatTask(tokenizer=g4.testing.Gemma4Tokenizer(), max_length=8)
_PAIRS = g4.data.PreferenceTask(
    tokenizer=g4.testing.Gemma4Tokenizer(), max_length=8
)


def _said(caplog, model, task, **kwargs):
  trainer = training.make_trainer(
      g4.nn.LoRA(rank=2, model=model(tokens='batch.input')),
      '/unused',
      num_train_steps=1,
      checkpointer=kd.ckpts.NoopCheckpointer(),
  )
  task = dataclasses.replace(task, **kwargs)
  ds = dataclasses.replace(trainer.train_ds, transforms=[task])
  _first_batch.check(dataclasses.replace(trainer, train_ds=ds), {})
  return caplog.text


@pytest.mark.parametrize('template', ['dialog', 'transformers'])
@pytest.mark.parametrize('task', [_TASK, _PAIRS])
def test_an_e_model_has_no_empty_thought(caplog, task, template):
  said = _said(
      caplog,
      g4.testing.Gemma4_E2B,
      task,
      thinking='empty',
      template=template,
  )
  assert (
      said.count("prompt that its server never gives. Write thinking='st") == 1
  )
  assert type(task).__name__ in said


def test_a_larger_model_has_one_where_servers_have_it(caplog):
  said = _said(
      caplog, g4.testing.Gemma4_31B, _TASK, template='transformers-2026-05'
  )
  assert said.count("what is trained has none. Write thinking='empty'") == 1


@pytest.mark.parametrize(
    ('model', 'kwargs'),
    [
        (g4.testing.Gemma4_E4B, dict(template='transformers')),
        (
            g4.testing.Gemma4_26B_A4B,
            dict(template='transformers', thinking='empty'),
        ),
        (
            g4.testing.Gemma4_31B,
            dict(template='transformers', enable_thinking=True),
        ),
        # gemma's samplers write none.
        (g4.testing.Gemma4_31B, {}),
    ],
)
def test_what_servers_give_is_as_it_should_be(caplog, model, kwargs):
  assert not _said(caplog, model, _TASK, **kwargs)
