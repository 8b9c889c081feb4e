"""Tests of reading a chat template from a file, and of its sandbox."""

import dataclasses
import json
import os

import pytest

from gemma4_lora import g4
from tests.lib import chat_templates

_TASK = g4.data.ChatTask(
    layout='messages',
    tokenizer=g4.testing.Gemma4Tokenizer(),
    max_length=256,
)
_ROW = {
    'messages': [
        {'role': 'user', 'content': 'Hi'},
        {'role': 'assistant', 'content': 'Hi!'},
    ]
}


def _task(path, **kwargs):
  return dataclasses.replace(_TASK, template=str(path), **kwargs)


def _text(path, **kwargs):
  return _task(path, **kwargs).render(_ROW).text


def test_a_file_and_its_folder_are_the_same(tmp_path):
  folder = chat_templates.put(tmp_path, chat_templates.DIALOG)
  expected = _TASK.render(_ROW).text
  assert _text(folder) == expected
  assert _text(tmp_path / 'chat_template.jinja') == expected


@pytest.mark.parametrize(
    'value',
    [
        chat_templates.DIALOG,
        [
            {'name': 'tool_use', 'template': '{{ messages'},
            {'name': 'default', 'template': chat_templates.DIALOG},
        ],
    ],
)
def test_settings_of_a_tokenizer_may_have_it(tmp_path, value):
  text = json.dumps({'chat_template': value, 'bos_token': '<bos>'})
  folder = chat_templates.put(tmp_path, text, name='tokenizer_config.json')
  assert _text(folder) == _TASK.render(_ROW).text


def test_paths_without_a_template_are_errors(tmp_path):
  with pytest.raises(FileNotFoundError, match='no such file.*served'):
    _task(tmp_path / 'x.jinja')
  with pytest.raises(FileNotFoundError, match='the folder has no chat_templ'):
    _task(tmp_path)
  chat_templates.put(tmp_path, '{"a": 1}', name='tokenizer_config.json')
  with pytest.raises(FileNotFoundError, match="no 'chat_template' in"):
    _task(tmp_path)
  with pytest.raises(ValueError, match="tokenizer_config.json' has no 'chat"):
    _task(tmp_path / 'tokenizer_config.json')
  with pytest.raises(ValueError, match=r"'gemma' is none of.*'\./folder/'"):
    _task('gemma')
  with pytest.raises(ValueError, match='give .hf://x/chat_template.jinja'):
    _task('https://huggingface.co/x/chat_template.jinja')
  os.mkfifo(tmp_path / 'pipe.jinja')
  with pytest.raises(ValueError, match='pipe.jinja is a pipe'):
    _task(tmp_path / 'pipe.jinja')


@pytest.mark.parametrize(
    'data, match',
    [
        (b'', r'is empty \(0 bytes\)'),
        (b'version https://git-lfs.github.com/spec/v1\n', 'git-LFS'),
        (b'<!doctype html>', 'a web page'),
        (b'a\xff', 'is no text'),
        (b'a\n{% if %}', 'is no Jinja template: line 2'),
        (b'{{ x', 'is no Jinja template: line 1'),
        (b'{{ x | unknown }}', "is no Jinja template.*'unknown'"),
    ],
)
def test_files_that_are_no_template_are_errors(tmp_path, data, match):
  path = tmp_path / 'chat_template.jinja'
  path.write_bytes(data)
  with pytest.raises(ValueError, match=match):
    _task(path)


@pytest.mark.parametrize(
    'text',
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        '{{ messages.append(1) }}',
        '{{ raise_exception.__globals__.keys() }}',
        '{{ cycler.__init__.__globals__.os }}',
        "{% set x = messages[0].update({'role': 'x'}) %}",
        '{% for i in range(10**9) %}{% endfor %}',
    ],
)
def test_a_template_cannot_leave_its_sandbox(tmp_path, text):
  path = chat_templates.put(tmp_path, text)
  task = _task(path, max_malformed=1)
  assert task.map(dict(_ROW)) is None
  (reason,) = task.malformed.examples.values()
  assert ' raises ' in reason[0]
  assert 'SecurityError' in reason[0] or 'OverflowError' in reason[0]


def test_attributes_of_its_values_are_not_there(tmp_path):
  text = "{{ messages.__class__ }}{{ '{0.__class__}'.format(messages) }}"
  path = chat_templates.put(tmp_path, text + chat_templates.DIALOG)
  assert _text(path) == _TASK.render(_ROW).text


def test_a_row_at_which_it_raises_is_malformed_with_its_reason(tmp_path):
  text = "{{ raise_exception('Roles must alternate.') }}"
  task = _task(chat_templates.put(tmp_path, text), max_malformed=1)
  assert task.map(dict(_ROW)) is None
  ((example,),) = task.malformed.examples.values()
  assert "raises 'Roles must alternate.' (TemplateError)" in example
  assert task.malformed.num_malformed == 1


def test_a_file_that_is_there_has_what_transformers_gives(tmp_path):
  """Its loop controls, filters, functions, tokens and arguments."""
  text = (
      '{{ bos_token }}{% for i in range(9) %}{% if i == 2 %}{% break %}'
      "{% endif %}{{ i }}{% endfor %}{{ {'b': '<é>', 'a': 1} | tojson }}"
      "{{ strftime_now('%Y') | length }}{{ eos_token }}{{ tools is none }}"
      '{% generation %}{{ documents is none }}{% endgeneration %}'
      '{{ add_generation_prompt }}{{ more | default(7) }}'
  )
  template = chat_templates.put(tmp_path, text)
  row = {'messages': [{'role': 'user', 'content': 'a'}]}
  for more in ({}, {'more': 8}):
    task = _task(template, template_kwargs=more, empty_answers='train')
    assert task.render(row).text == (
        '01{"b": "<é>", "a": 1}4<eos>TrueTrueFalse' + str(more.get('more', 7))
    )
