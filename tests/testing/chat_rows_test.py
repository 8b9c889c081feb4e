"""`ChatRows` are what each layout's task takes."""

import numpy as np
import pytest

from gemma4_lora import g4
from gemma4_lora.data.layouts import _layouts

_PAIR = g4.testing.EnFrPairs(split='train')[1]
_COMMON = dict(tokenizer=g4.testing.Gemma4Tokenizer(), max_length=64)


def _trained(example):
  mask = example['loss_mask'].reshape(-1)
  return _COMMON['tokenizer'].decode(example['target'].reshape(-1)[mask])


@pytest.mark.parametrize(
    'fields',
    [
        dict(layout='prompt_response', in_prompt='a', in_response='b'),
        dict(layout='messages'),
        dict(layout='messages', in_messages='c'),
        dict(layout='sharegpt'),
    ],
)
def test_conversations(fields):
  row = g4.testing.ChatRows(**fields)[1]
  example = g4.data.ChatTask(**fields, **_COMMON).map(row)
  assert set(example) == {'input', 'target', 'loss_mask'}
  assert _trained(example) == _PAIR['fr'] + '<turn|>'


@pytest.mark.parametrize('layout', _layouts.LAYOUTS)
@pytest.mark.parametrize('in_prompt', ['prompt', None])
def test_pairs(layout, in_prompt):
  if in_prompt is None and not _layouts.LAYOUTS[layout].is_chat:
    return  # There is no such task.
  row = g4.testing.ChatRows(
      layout=layout,
      in_prompt=in_prompt,
      in_response='chosen',
      in_rejected='rejected',
  )[1]
  task = g4.data.PreferenceTask(layout=layout, in_prompt=in_prompt, **_COMMON)
  example = task.map(row)
  assert set(example) == {'input', 'target', 'loss_mask'}
  chosen = {k: v[0] for k, v in example.items()}
  rejected = {k: v[1] for k, v in example.items()}
  assert _trained(chosen) == _PAIR['fr'] + '<turn|>'
  assert _trained(rejected) == _PAIR['en'] + '<turn|>'
  np.testing.assert_array_equal(chosen['input'][:5], rejected['input'][:5])
  # Neither left out nor said twice.
  text = _COMMON['tokenizer'].decode(chosen['input'])
  assert text.count(_PAIR['en']) == 1


@pytest.mark.parametrize('layout', _layouts.LAYOUTS)
def test_every_other_row_has_an_image(layout):
  rows = g4.testing.ChatRows(layout=layout, in_images='image')
  task = g4.data.ChatTask(
      layout=layout,
      in_images='image',
      tokenizer=g4.testing.Gemma4Tokenizer(path=g4.testing.ImageVocabulary()),
      max_length=64,
      max_soft_tokens=4,
      patch_size=4,
  )
  counts = [(task.map(rows[i])['input'] == -2).sum() for i in range(4)]
  assert counts == [4, 0, 3, 0]


def test_other_fields_are_there():
  row = g4.testing.ChatRows(others=('category',))[0]
  assert set(row) == {'prompt', 'response', 'category'}
