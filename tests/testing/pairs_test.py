"""Tests of the English-French pairs."""

import re

from kauldron import kd
import pytest

from gemma4_lora import g4


def _words(pairs):
  return {
      word
      for pair in pairs
      for text in pair.values()
      for word in re.findall(r"\w+", text.lower())
  }


def test_splits_are_nine_tenths_and_one_tenth():
  assert len(g4.testing.EnFrPairs(split="train")) == 360
  assert len(g4.testing.EnFrPairs(split="test")) == 40


@pytest.mark.parametrize("language", ["en", "fr"])
def test_no_sentence_is_twice_in_the_data(language):
  texts = [
      pair[language]
      for split in ("train", "test")
      for pair in g4.testing.EnFrPairs(split=split)
  ]
  assert len(set(texts)) == len(texts) == 400


def test_each_word_of_the_test_split_is_in_the_train_split():
  train = _words(g4.testing.EnFrPairs(split="train"))
  assert _words(g4.testing.EnFrPairs(split="test")) <= train


def test_every_sentence_begins_and_ends_as_one():
  for pair in g4.testing.EnFrPairs(split="train"):
    for text in pair.values():
      assert text[0].isupper() and text[-1] in ".?!" and text == text.strip()


def test_examples_are_the_callers_to_change():
  pairs = g4.testing.EnFrPairs(split="test")
  pairs[0]["en"] = "changed"
  assert pairs[0]["en"] != "changed"


def test_pairs_are_a_kauldron_data_source():
  ds = kd.data.py.DataSource(
      data_source=g4.testing.EnFrPairs(split="test"),
      shuffle=False,
      num_epochs=1,
      batch_size=None,
      num_workers=0,
  )
  assert list(ds) == list(g4.testing.EnFrPairs(split="test"))


def test_an_unknown_split_is_an_error():
  with pytest.raises(ValueError, match=r"split='dev' must be one of .*'train'"):
    g4.testing.EnFrPairs(split="dev")
