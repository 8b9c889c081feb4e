"""Tests of plain texts: which tokens there are, which are trained, and where."""

import dataclasses
import pickle

import numpy as np
import pytest

from gemma4_lora import g4
from gemma4_lora.data import _recent_texts

_TOKENIZER = g4.testing.Gemma4Tokenizer()
_BOS, _EOS = 2, 1
_TASK = g4.data.TextTask(tokenizer=_TOKENIZER, max_length=32)
_TEXTS = [
    {'text': pair['fr'] * (1 + 9 * (i % 5 == 1))}
    for i, pair in enumerate(g4.testing.EnFrPairs(split='test'))
]


def _trained(example):
  return example['target'][example['loss_mask']].tolist()


def test_all_of_a_text_is_trained_behind_bos():
  example = _TASK.map({'text': 'Le chat dort.', 'id': 7})
  ids = _TOKENIZER.encode('Le chat dort.')
  assert example['input'].tolist()[: len(ids)] == [_BOS, *ids[:-1]]
  assert _trained(example) == ids
  assert example['loss_mask'].sum() == len(ids)
  assert sorted(example) == ['id', 'input', 'loss_mask', 'target']
  specs = _TASK.field_specs()
  assert {k: (x.shape, x.dtype) for k, x in specs.items()} == {
      k: (example[k].shape, example[k].dtype) for k in specs
  }


def test_bos_and_eos_are_choices():
  ids = _TOKENIZER.encode('Le chat dort.')
  task = dataclasses.replace(_TASK, add_bos=False, add_eos=True)
  example = task.map({'text': b'Le chat dort.'})
  assert example['input'][0] == ids[0]
  assert _trained(example) == [*ids[1:], _EOS]


def test_a_completion_is_trained_and_its_prompt_is_not():
  task = dataclasses.replace(
      _TASK, in_prompt='prompt', in_text='completion', add_eos=True
  )
  example = task.map({'prompt': 'Le chat', 'completion': ' dort.'})
  prompt, text = map(_TOKENIZER.encode, ('Le chat', ' dort.'))
  n = len(prompt) + len(text) + 1
  assert example['input'].tolist()[:n] == [_BOS, *prompt, *text]
  assert _trained(example) == [*text, _EOS]
  assert sorted(example) == ['input', 'loss_mask', 'target']


def test_a_text_that_is_too_long_is_an_error_or_cut():
  row = {'text': 'Le chat dort. ' * 20}
  with pytest.raises(ValueError, match=r'has \d+ tokens and max_length=32.*Pa'):
    _TASK.map(row)
  cut = dataclasses.replace(_TASK, truncate=True).map(row)
  assert _trained(cut) == _TOKENIZER.encode(row['text'])[:32]
  task = dataclasses.replace(_TASK, in_prompt='text', in_text='y')
  row['y'] = 'Oui.'
  with pytest.raises(ValueError, match=r'max_length=32\. Raise'):
    task.map(row)
  with pytest.raises(ValueError, match='would cut the whole text'):
    dataclasses.replace(task, truncate=True).map(row)


@pytest.mark.parametrize(
    ('row', 'message'),
    [
        ({'text': ''}, "the text is empty, at 'text'"),
        ({'text': ' \n\u200b'}, "the text is empty, at 'text'"),
        ({'text': 5}, "'text' should be text"),
        ({'text': 'a<|turn>user'}, r"'text' has the turn tag '<\|turn>'"),
        (
            {'text': 'a<tool_call|>'},
            r"'text' has the control tag '<tool_call\|>'",
        ),
        ({'text': '<bos>a'}, r"'text' has the .* '<bos>'.*allowed_tags="),
        ({'text': 'a\ud800'}, 'half of a character'),
        ({'txt': 'a'}, "no field 'text'"),
    ],
)
def test_malformed_rows(row, message):
  with pytest.raises((ValueError, KeyError), match=message):
    _TASK.map(row)
  assert dataclasses.replace(_TASK, max_malformed=1).map(row) is None


def test_what_looks_like_a_tag_and_is_no_token_is_text():
  ids = _TOKENIZER.encode('<|im_start|> <p> a|b')
  assert _trained(_TASK.map({'text': '<|im_start|> <p> a|b'})) == ids


def test_rendered_texts_are_read_with_their_tags():
  task = dataclasses.replace(_TASK, allowed_tags='all')
  example = task.map({'text': '<bos><|turn>user\nOui.<turn|>'})
  assert example['input'][:3].tolist() == [
      _BOS,
      105,
      *_TOKENIZER.encode('user'),
  ]
  assert 106 in _trained(example)


@pytest.mark.parametrize('add_bos', [True, False])
def test_packed_texts_are_split_and_each_token_is_trained_once(add_bos):
  """Pieces of long texts begin anew; positions tell them apart."""
  task = dataclasses.replace(_TASK, add_bos=add_bos, add_eos=True)
  source = g4.data.PackedSource(data_source=_TEXTS, transforms=[task])
  trained, starts = [], 0
  for row in source:
    trained += _trained(row)
    begins = row['positions'] == 0
    begins[np.flatnonzero(row['input'])[-1] + 1 :] = False
    starts += begins.sum()
    if add_bos:
      assert (row['input'][begins] == _BOS).all()
      assert (row['input'] == _BOS).sum() == begins.sum()
  texts = [[*_TOKENIZER.encode(x['text']), _EOS] for x in _TEXTS]
  want = [token for text in texts for token in text[not add_bos :]]
  assert sorted(trained) == sorted(want)
  lengths = [len(text) - (not add_bos) for text in texts]
  assert starts == sum(-(-n // 32) for n in lengths)
  assert max(lengths) > 64
  copy = pickle.loads(pickle.dumps(source))
  np.testing.assert_array_equal(copy[1]['input'], source[1]['input'])


def test_malformed_texts_are_left_out_of_packed_rows():
  task = dataclasses.replace(_TASK, max_malformed=1)
  source = g4.data.PackedSource(
      data_source=[{'text': ''}, {'text': 'Oui.'}], transforms=[task]
  )
  assert source.bins == [[1]]
  assert task.malformed.num_malformed == 1


def test_recent_texts_are_kept_within_a_limit():
  recent = _recent_texts.RecentTexts(max_tokens=10)

  def pieces(*lengths):
    return [(np.zeros(n), np.zeros(n)) for n in lengths]

  recent.keep(1, pieces(3, 3))
  recent.keep(1, pieces(3, 3))
  recent.keep(2, pieces(4))
  assert recent.get(1) and recent.get(2)
  recent.keep(3, pieces(1))
  assert recent.get(1) is None and recent.get(2) and recent.get(3)
  recent.keep(4, pieces(11))  # Too large for itself.
  assert recent.get(4) is None and recent.get(3) is None
  assert pickle.loads(pickle.dumps(recent)).get(2) is None


def test_packed_texts_are_read_again_if_they_are_not_kept():
  source = g4.data.PackedSource(
      data_source=_TEXTS, transforms=[dataclasses.replace(_TASK)]
  )
  rows = list(source)
  source.__dict__['_recent'] = _recent_texts.RecentTexts(max_tokens=0)
  for row, again in zip(rows, source, strict=True):
    np.testing.assert_array_equal(row['input'], again['input'])


def test_wrong_arguments():
  with pytest.raises(ValueError, match="are both 'text'"):
    dataclasses.replace(_TASK, in_prompt='text')
  with pytest.raises(ValueError, match="allowed_tags='<mask>' should be a t"):
    dataclasses.replace(_TASK, allowed_tags='<mask>')
  with pytest.raises(ValueError, match='max_malformed=-1'):
    dataclasses.replace(_TASK, max_malformed=-1)
