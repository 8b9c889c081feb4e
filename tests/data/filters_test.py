"""Tests of the filters."""

import dataclasses

from absl import logging
from gemma import gm
from kauldron import kd
import pytest

from gemma4_lora import g4

_TOKENIZER = g4.testing.Gemma4Tokenizer()


def _task(max_length):
  return g4.data.ChatTask(
      in_prompt="en",
      in_response="fr",
      tokenizer=_TOKENIZER,
      max_length=max_length,
      truncate=True,
  )


def _filter(max_length):
  return g4.data.DropLongPrompts(
      in_prompt="en", tokenizer=_TOKENIZER, max_length=max_length
  )


@pytest.mark.parametrize("max_length", range(8, 20))
def test_it_drops_what_the_task_refuses_and_no_more(max_length):
  """Of lengths around those of the pairs' prompts, with a split verdict."""
  pairs = list(g4.testing.EnFrPairs(split="test"))
  kept = [pair for pair in pairs if _filter(max_length).filter(pair)]
  for pair in pairs:
    if pair in kept:
      assert _task(max_length).map(pair)["loss_mask"].any()
    else:
      with pytest.raises(ValueError, match="cut the whole response"):
        _task(max_length).map(pair)


def test_a_pipeline_goes_on_without_them(caplog):
  max_length = 15
  ds = kd.data.py.DataSource(
      data_source=g4.testing.EnFrPairs(split="test"),
      shuffle=False,
      num_epochs=1,
      batch_size=None,
      num_workers=0,
      transforms=[_filter(max_length), _task(max_length)],
  )
  with caplog.at_level(logging.WARNING):
    examples = list(ds)
  dropped = [r for r in caplog.records if "DropLongPrompts" in r.message]
  assert 0 < len(examples) < 40
  assert len(examples) + len(dropped) == 40
  assert f"tokens (max_length={max_length})" in dropped[0].message


def test_a_tokenizer_of_another_gemma_is_an_error():
  with pytest.raises(ValueError, match="DropLongPrompts.*Gemma3Tokenizer"):
    dataclasses.replace(_filter(8), tokenizer=gm.text.Gemma3Tokenizer())


@pytest.mark.parametrize(
    "row", [{}, {"en": 3}, {"en": b"\xff"}, {"en": "\ud800"}, {"en": "<|turn>"}]
)
def test_a_prompt_that_cannot_be_read_is_left_to_the_task(row):
  row = {"fr": "Oui.", **row}
  assert _filter(8).filter(row)
  task = dataclasses.replace(_task(8), max_malformed=1)
  assert task.map(row) is None
