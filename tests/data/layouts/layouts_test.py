"""Contract of all layouts of the table."""

import dataclasses
import inspect
import pathlib

import numpy as np
import pytest

from gemma4_lora import data
from gemma4_lora import g4
from gemma4_lora.data.layouts import _layouts

_README = pathlib.Path(data.__file__).parent / 'README.md'
_COMMON = dict(tokenizer=g4.testing.Gemma4Tokenizer(), max_length=64)
_TASK = g4.data.ChatTask(in_system='system', **_COMMON)
_layout = pytest.mark.parametrize('layout', _layouts.LAYOUTS)


@_layout
def test_layouts_say_the_same(layout):
  rows = g4.testing.ChatRows(layout=layout, others=['system'])
  row = dict(rows[0], system=b'Be kind.')
  wanted = dict(g4.testing.ChatRows()[0], system='Be kind.')
  task = dataclasses.replace(_TASK, layout=layout)
  assert task.render(row) == _TASK.render(wanted)
  assert '<|turn>system\nBe kind.<turn|>' in task.render(row).text
  assert set(task.map(row)) == {'input', 'target', 'loss_mask'}


@_layout
def test_pairs_of_all_layouts_say_the_same(layout):
  keys = dict(in_response='chosen', in_rejected='rejected')
  row = g4.testing.ChatRows(layout=layout, **keys)[0]
  task = g4.data.PreferenceTask(layout=layout, **_COMMON)
  wanted = g4.data.PreferenceTask(**_COMMON).map(g4.testing.ChatRows(**keys)[0])
  np.testing.assert_equal(task.map(row), wanted)


@_layout
def test_labelled_answers_of_all_layouts_say_the_same(layout):
  keys = dict(in_response='completion', in_label='label')
  task = g4.data.UnpairedTask(layout=layout, **_COMMON)
  wanted = g4.data.UnpairedTask(**_COMMON)
  for i in range(2):
    row = g4.testing.ChatRows(layout=layout, **keys)[i]
    want = wanted.map(g4.testing.ChatRows(**keys)[i])
    np.testing.assert_equal(task.map(row), want)
    assert want['label'] == (i == 0)


@_layout
def test_prompts_of_pairs_have_their_images(layout):
  keys = dict(in_response='chosen', in_rejected='rejected', in_images='image')
  task = g4.data.PreferenceTask(layout=layout, in_images='image', **_COMMON)
  for i, wanted in enumerate((1, 0)):
    row = g4.testing.ChatRows(layout=layout, **keys)[i]
    answers = [task.answered(row, key) for key in ('chosen', 'rejected')]
    assert [answer.num_images for answer in answers] == [wanted] * 2


@_layout
def test_each_layout_is_documented(layout):
  assert f"* `'{layout}'`: " in inspect.getdoc(g4.data.ChatTask)
  (line,) = [
      line
      for line in _README.read_text(encoding='utf-8').splitlines()
      if line.startswith('| `layout` |')
  ]
  assert f"`'{layout}'`" in line


def test_a_key_of_another_layout_is_an_error():
  match = "in_messages='chat' .*layout='messages' or layout='sharegpt'"
  with pytest.raises(ValueError, match=match):
    dataclasses.replace(_TASK, in_messages='chat')


def test_pairs_of_texts_without_a_prompt_are_an_error():
  match = "'prompt_response' needs .*layout='messages' or layout='sharegpt'"
  with pytest.raises(ValueError, match=match):
    g4.data.PreferenceTask(in_prompt=None, **_COMMON)
