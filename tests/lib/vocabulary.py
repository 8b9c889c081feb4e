"""Gemma 4's own vocabulary: `vocabulary_reference` made the files."""

import functools
import pathlib

from gemma import gm

_TESTDATA = pathlib.Path(__file__).parents[1] / 'testdata'


@functools.cache
def tokenizer() -> gm.text.Gemma4Tokenizer:
  """Returns gemma's tokenizer with all 262,144 pieces."""
  return gm.text.Gemma4Tokenizer(path=_TESTDATA / 'gemma4.model')


def golden() -> list[tuple[str, list[int]]]:
  """Returns llama.cpp's texts for this vocabulary, and their tokens."""
  name = _TESTDATA / 'ggml-vocab-gemma-4'
  texts = name.with_suffix('.inp').read_text(encoding='utf-8')
  lists = name.with_suffix('.out').read_text(encoding='utf-8').splitlines()
  return [
      (text, [int(x) for x in tokens.split()])
      for text, tokens in zip(
          texts.split('\n__ggml_vocab_test__\n'), lists, strict=True
      )
  ]
