"""Tests of the picture of an example: each token once, in its colour."""

import dataclasses
import html.parser
import re

import jax
import numpy as np
import pytest

from gemma4_lora import g4

_TOKENIZER = g4.testing.Gemma4Tokenizer()
_TASK = g4.data.ChatTask(tokenizer=_TOKENIZER, max_length=64)
_ROW = {'prompt': 'Où <b>?', 'response': 'Là 🙂\nici.'}
_TEXT = '<bos><|turn>user\nOù <b>?<turn|>\n<|turn>model\nLà 🙂\nici.<turn|>'
_TRAINED = 'Là 🙂\nici.<turn|>'


def _show(example, capsys=None):
  shown = g4.data.show(example, tokenizer=_TOKENIZER)
  return shown if capsys is None else (shown, capsys.readouterr().out)


def _text(shown, *, trained=False):
  (tokens,) = shown.rows
  return ''.join(t.text for t in tokens if t.weight or not trained)


def test_without_colours_brackets_are_around_what_is_trained(capsys):
  _, out = _show(_TASK.map(_ROW), capsys)
  title, body = out.split('\n', 1)
  ids = _TASK.tokenize(_TASK.render(_ROW))[0]
  assert title.startswith(f'{len(ids)} tokens, ')
  assert title.endswith(f'(green), {64 - len(ids) + 1} of padding')
  context = _TEXT.removesuffix(_TRAINED)
  expected = f'{context}⟦{_TRAINED}⟧'.replace('\n', '⏎\n')
  assert body == expected + '\n'


def test_ansi_colours_are_of_the_trained(capsys):
  shown, _ = _show(_TASK.map(_ROW), capsys)
  text = str(shown).split('\n', 1)[1]
  green = re.findall('\033\\[30;48;5;\\d+m(.*?)\033\\[0m', text)
  assert ''.join(green).replace('⏎', '\n') == _TRAINED
  bare = re.sub('\033\\[[0-9;]*m', '', text)
  assert bare.replace('⏎\n', '\n') == _TEXT


def test_a_notebook_shows_each_token_with_its_id_and_colour():
  shown = _show(_TASK.map(_ROW))
  spans = []

  class Parser(html.parser.HTMLParser):

    def handle_starttag(self, tag, attrs):
      if tag == 'span':
        spans.append([dict(attrs), ''])

    def handle_data(self, data):
      if spans:
        spans[-1][1] += data

  Parser().feed(shown._repr_html_())
  texts = [text.replace('⏎\n', '\n') for _, text in spans]
  assert ''.join(texts) == _TEXT
  ids = [int(i) for attrs, _ in spans for i in attrs['title'].split(', ')]
  assert ids == list(_TASK.tokenize(_TASK.render(_ROW))[0])
  green = [
      text
      for (attrs, _), text in zip(spans, texts, strict=True)
      if '#7bd88f' in attrs['style'] or '#b5ecc0' in attrs['style']
  ]
  assert ''.join(green) == _TRAINED


def test_all_conversations_of_a_packed_row_are_shown():
  source = g4.data.PackedSource(data_source=[_ROW, _ROW], transforms=[_TASK])
  shown = _show(dataclasses.replace(source)[0])
  assert _text(shown) == _TEXT + _TEXT
  assert _text(shown, trained=True) == _TRAINED + _TRAINED


def test_each_row_of_a_batch_is_shown(capsys):
  batch = jax.tree.map(lambda x: np.stack([x, x]), _TASK.map(_ROW))
  shown, out = _show(batch, capsys)
  assert len(shown.rows) == 2
  assert out.count('<bos>') == 2
  assert repr(shown).count('tokens') == 2


def test_weights_are_shown():
  task = dataclasses.replace(_TASK, layout='messages', token_weights=True)
  messages = [
      {'role': 'user', 'content': 'a'},
      {'role': 'assistant', 'content': 'b', 'weight': 0.5},
  ]
  shown = _show(task.map({'messages': messages}))
  assert _text(shown, trained=True) == 'b<turn|>'
  assert ', weight 0.5"' in shown._repr_html_()


def test_a_cut_character_is_shown_as_one():
  example = dict(_TASK.map(_ROW))
  (smile,) = [
      i for i, t in enumerate(example['target'][:, 0]) if t in _bytes()
  ][:1]
  for key in example:
    example[key] = example[key][: smile + 2]
  assert _text(_show(example)).endswith('Là \ufffd')


def _bytes():
  return set(_TOKENIZER.encode('🙂'))


def test_a_missing_field_is_an_error():
  with pytest.raises(ValueError, match="no field 'input'.*Set `in_input=`"):
    g4.data.show(_ROW, tokenizer=_TOKENIZER)


def test_what_a_terminal_acts_upon_is_spelled_out(capsys):
  row = {'prompt': 'a\033[2Jb', 'response': '\u202eLà.'}
  _, out = _show(_TASK.map(row), capsys)
  assert r'a\x1b[2Jb' in out
  assert r'⟦\u202eLà.' in out
  assert '\033' not in out and '\u202e' not in out
