"""Tests of what rows say of their template."""

import dataclasses
import json

import pytest

from gemma4_lora import g4
from tests.lib import chat_templates

_TASK = g4.data.ChatTask(
    layout='messages',
    tokenizer=g4.testing.Gemma4Tokenizer(),
    max_length=256,
    template='transformers',
)
_THINK = '<|turn>system\n<|think|>\n<turn|>\n'


def _row(**kwargs):
  return {
      'messages': [
          {'role': 'user', 'content': 'Hi'},
          {'role': 'assistant', 'content': 'Hi!'},
      ]
  } | kwargs


@pytest.mark.parametrize('template', ['dialog', 'transformers', 'a file'])
def test_each_row_may_say_whether_it_thinks(template, tmp_path):
  if template == 'a file':
    template = chat_templates.put(tmp_path, chat_templates.DIALOG)
  off = dataclasses.replace(_TASK, template=template)
  on = dataclasses.replace(off, enable_thinking=True)
  with_, without = (
      on.render(_row()).text,
      off.render(_row()).text,
  )
  assert with_.startswith('<|turn>system\n<|think|>') and with_ != without
  for thinks, expected in ((True, with_), (False, without), (None, None)):
    for row in (
        _row(enable_thinking=thinks),
        _row(chat_template_kwargs={'enable_thinking': thinks}),
        _row(chat_template_kwargs=json.dumps({'enable_thinking': thinks})),
    ):
      for task, default in ((off, without), (on, with_)):
        assert task.render(row).text == (expected or default)


def test_rows_that_think_have_no_empty_thought():
  task = dataclasses.replace(_TASK, thinking='empty')
  assert '<channel|>' in task.render(_row()).text
  row = _row(enable_thinking=True)
  row['messages'][-1]['reasoning'] = 'Hm.'
  rendered = task.render(row)
  assert rendered.trained == '<|channel>thought\nHm.\n<channel|>Hi!<turn|>'
  assert rendered.prompt.startswith(_THINK)


def test_arguments_of_a_template_are_those_that_it_has(tmp_path):
  call = {'function': {'name': 'f', 'arguments': {}}}
  row = _row()
  row['messages'][1:1] = [
      {'role': 'assistant', 'tool_calls': [call], 'reasoning': 'Hm.'},
      {'role': 'tool', 'content': 'a'},
      {'role': 'assistant', 'content': 'b'},
      {'role': 'user', 'content': 'c'},
  ]
  task = dataclasses.replace(_TASK, thinking='strip')
  assert 'Hm.' not in task.render(row).text
  stays = {'preserve_thinking': True}
  assert 'Hm.' in task.render(row | {'chat_template_kwargs': stays}).text
  assert 'Hm.' in (
      dataclasses.replace(task, template_kwargs=stays).render(row).text
  )
  with pytest.raises(ValueError, match="no argument 'x'.*It has: .*thinking"):
    task.render(row | {'chat_template_kwargs': {'x': 1}})
  with pytest.raises(ValueError, match="no argument 'preserve_thinking'"):
    dataclasses.replace(task, template='dialog', template_kwargs=stays)
  path = chat_templates.put(tmp_path / 'dialog', chat_templates.DIALOG)
  of_file = dataclasses.replace(task, template=path)
  assert 'Hm.' not in of_file.render(row).text
  assert 'Hm.' in of_file.render(row | {'chat_template_kwargs': stays}).text
  # A file's are its own.
  path = chat_templates.put(
      tmp_path, '{{ x | default(1) }}' + chat_templates.DIALOG
  )
  task = dataclasses.replace(_TASK, template=path)
  rendered = task.render(_row(chat_template_kwargs={'x': 5}))
  assert rendered.text.startswith('5')


@pytest.mark.parametrize(
    'row, match',
    [
        ({'enable_thinking': 'yes'}, "'enable_thinking' of the row .*'yes'"),
        ({'chat_template_kwargs': [1]}, 'should be a dict of arguments'),
        (
            {'chat_template_kwargs': {'tools': [], 'bos_token': ''}},
            r"has \['bos_token', 'tools'\]: the server gives",
        ),
        (
            {'chat_template_kwargs': '{'},
            "'chat_template_kwargs' is a text that",
        ),
        (
            {
                'enable_thinking': True,
                'chat_template_kwargs': {'enable_thinking': False},
            },
            "'enable_thinking' is True, and .* says False. Keep one",
        ),
    ],
)
def test_what_says_nothing_is_malformed(row, match):
  with pytest.raises(ValueError, match=match):
    _TASK.render(_row(**row))


def test_their_fields_are_inputs_and_may_have_other_names():
  row = _row(enable_thinking=True, chat_template_kwargs={}, id=1)
  assert set(_TASK.map(row)) == {'input', 'target', 'loss_mask', 'id'}
  task = dataclasses.replace(
      _TASK, in_enable_thinking='meta.think', in_template_kwargs=None
  )
  assert task.render(_row(meta={'think': True})).text.startswith(_THINK)
  assert not task.render(_row(meta={})).text.startswith(_THINK)
  assert task.map(_row(meta={'think': True}))['meta'] == {}
  # None: the fields are the dataset's own.
  task = dataclasses.replace(
      _TASK, in_enable_thinking=None, in_template_kwargs=None
  )
  row = _row(enable_thinking='yes')
  assert task.map(row)['enable_thinking'] == 'yes'


def test_pairs_of_answers_may_say_it():
  task = g4.data.PreferenceTask(tokenizer=_TASK.tokenizer, max_length=64)
  row = {'prompt': 'Go.', 'chosen': 'Yes.', 'rejected': 'No.'}
  on = dataclasses.replace(task, enable_thinking=True).map(dict(row))
  got = task.map(row | {'enable_thinking': True})
  assert set(got) == set(on)
  assert (got['input'] == on['input']).all()
