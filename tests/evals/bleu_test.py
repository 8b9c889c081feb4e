"""BLEU against sacrebleu, and a case counted by hand."""

import math
import sys
import types

import numpy as np
import pytest
import sacrebleu

from gemma4_lora import g4
from gemma4_lora.evals import _bleu

_SAID = [
    '<|channel>thought\nLe chat?<channel|>Le chat dort. <turn|>\n<turn|>',
    'Il pleut sur la ville<turn|>',
    '<|channel>thought\nI never came to an end',
]
_WANTED = ['Le chat dort ici.<turn|>', 'Il pleut sur la ville.', 'Bonjour.']
_PLAIN = ['Le chat dort.', 'Il pleut sur la ville', '']
_PLAIN_WANTED = ['Le chat dort ici.', 'Il pleut sur la ville.', 'Bonjour.']


def test_a_case_counted_by_hand():
  """7 of 7 words, 6 of 6 pairs, ... and 7 words where 8 are wanted."""
  state = g4.evals.Bleu().get_state(
      predictions='the cat sat on the red mat',
      references='the cat sat on the red mat today',
  )
  np.testing.assert_allclose(state.compute(), 100 * math.exp(1 - 8 / 7))
  state = g4.evals.Bleu().get_state(
      # Words 3 of 5, pairs 2 of 4, triples 1 of 3, and no four: a half.
      predictions='a b c x y',
      references='a b c d e',
  )
  wanted = (3 / 5 * 2 / 4 * 1 / 3 * (1 / 2) / 2) ** (1 / 4)
  np.testing.assert_allclose(state.compute(), 100 * wanted)


@pytest.mark.parametrize(
    'kwargs', [{}, {'tokenize': 'char'}, {'lowercase': True}]
)
def test_it_is_of_the_corpus_as_sacrebleu_has_it(kwargs):
  """Merged from texts and batches of them; of what is said alone."""
  metric = g4.evals.Bleu(**kwargs)
  said = _SAID[0]
  if kwargs.get('lowercase'):
    said = said.replace('Le chat dort', 'LE CHAT DORT')
  context = types.SimpleNamespace(
      preds={'text': said},
      batch={'target': _WANTED[0]},
  )
  state = metric.get_state_from_context(context)
  rest = metric.get_state(
      predictions=np.asarray(_SAID[1:], object), references=_WANTED[1:]
  )
  got = state.merge(rest).compute()
  want = sacrebleu.corpus_bleu(_PLAIN, [_PLAIN_WANTED], **kwargs).score
  np.testing.assert_allclose(got, want)
  assert 10 < got < 90


@pytest.mark.parametrize(
    ('said', 'wanted', 'match'),
    [
        (['a', 'b'], 'a', 'text has 2 texts, and batch.target 1'),
        ('a', ['a', 'b'], 'text has 1 texts, and batch.target 2'),
        ([], ['a'], 'text has 0 texts, and batch.target 1'),
    ],
)
def test_not_as_many(said, wanted, match):
  """Neither side may lack texts: sacrebleu would drop the others' rest."""
  with pytest.raises(ValueError, match=match):
    g4.evals.Bleu().get_state(predictions=said, references=wanted)


def test_tokens_are_no_texts():
  with pytest.raises(ValueError, match='batch.target is not a text but a int'):
    g4.evals.Bleu().get_state(predictions='a', references=np.arange(3))


def test_an_unknown_tokenizer():
  with pytest.raises(ValueError, match="'13b'.* no tokenizer.*'13a'"):
    g4.evals.Bleu(tokenize='13b').get_state(predictions='a', references='a')


def test_without_sacrebleu(monkeypatch):
  monkeypatch.setitem(sys.modules, 'sacrebleu', None)
  _bleu._sacrebleu.cache_clear()
  metric = g4.evals.Bleu()  # A config with it can be read all the same.
  with pytest.raises(ImportError, match=r'pip install "gemma4_lora\[eval\]"'):
    metric.get_state(predictions='a', references='a')
