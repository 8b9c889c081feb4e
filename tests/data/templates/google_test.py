"""Tests of Google's chat template: our text is what the real file renders."""

import dataclasses
import json
import pathlib

import pytest

from gemma4_lora import g4
from tests.lib import template_cases

_FILE = pathlib.Path(__file__).parents[2] / 'testdata'
_CASES = json.loads(
    (_FILE / 'transformers_template.json').read_text(encoding='utf-8')
)
_BY_NAME = {case['name']: case['row'] for case in _CASES}
_cases = pytest.mark.parametrize('case', _CASES, ids=lambda case: case['name'])


def _task(row, template='transformers', **kwargs):
  task = template_cases.task(template, row)
  return dataclasses.replace(task, **kwargs)


def _row(name):
  return {'tools': None} | _BY_NAME[name]


def _text(case, revision):
  """Returns the text of a revision: that of the next, unless it differs."""
  revisions = template_cases.REVISIONS
  for name in reversed(revisions[: revisions.index(revision) + 1]):
    if name in case['texts']:
      return case['texts'][name]
  raise KeyError(revision)


@_cases
@pytest.mark.parametrize('revision', template_cases.REVISIONS)
def test_text_is_that_of_the_template(case, revision):
  row, text = template_cases.row_of(case, revision), _text(case, revision)
  # The template leaves out thoughts in texts, also those of the last turn.
  thinking = 'strip_all' if case['name'] == 'inline_thoughts' else 'strip'
  task = _task(row, f'transformers-{revision}', thinking=thinking)
  if text is not None:
    assert task.render(row).text == template_cases.expected(text)
  elif revision == template_cases.REVISIONS[0]:
    with pytest.raises(ValueError, match='at which the template raises'):
      task.render(row)


@_cases
def test_prompt_is_that_of_the_template(case):
  """With the empty thought of the larger models, or without."""
  row = template_cases.row_of(case, '2026-07')
  if case['texts']['2026-07'] is None:
    return
  prompt = case['prompts']['2026-07'].removeprefix('<bos>')
  assert _task(row).render(row).prompt == prompt
  if not row.get('enable_thinking'):
    task = _task(row, thinking='empty')
    large = case['prompts']['2026-07-large'].removeprefix('<bos>')
    assert task.render(row).prompt == large


def test_transformers_is_the_newest_revision():
  row = _row('null_arguments')
  texts = {
      name: _task(row, name).render(row).text
      for name in (
          'transformers',
          'transformers-2026-07',
          'transformers-2026-05',
      )
  }
  assert texts['transformers'] == texts['transformers-2026-07']
  assert 'a:null' in texts['transformers']
  assert 'a:None' in texts['transformers-2026-05']


def test_arguments_as_json_are_read_as_servers_read_them():
  """The template itself raises: vLLM reads them before it renders."""
  row = _row('call')
  as_json = json.loads(json.dumps(row))
  function = as_json['messages'][1]['tool_calls'][0]['function']
  function['arguments'] = json.dumps(function['arguments'])
  assert _task(row).render(as_json) == _task(row).render(row)


def test_calls_and_what_follows_are_trained_and_answers_are_not():
  row = _row('call_says_then_user')
  task = _task(row, loss_on='all')
  assert task.render(row).trained == (
      '<|tool_call>call:f{}<tool_call|><|tool_response>I go.<turn|>Done.<turn|>'
  )
  row = _row('user_after_answer')
  # The turn's end behind the tool's answer is not the model's.
  assert task.render(row).trained == (
      '<|tool_call>call:f{}<tool_call|><|tool_response>Done.<turn|>'
  )


def test_a_thought_that_the_prompt_begins_is_trained_from_there():
  row = _row('thinking_on_call')
  open_ = '<|channel>thought\n'
  rendered = _task(row).render(row)
  assert open_ + 'Second.\n<channel|>Done.' in rendered.text
  assert rendered.trained == (
      f'{open_}First.\n<channel|><|tool_call>call:f{{}}<tool_call|>'
      '<|tool_response>Second.\n<channel|>Done.<turn|>'
  )
  # Until July the prompt began no thought.
  older = _task(row, 'transformers-2026-05').render(row)
  assert f'<|tool_response>{open_}Second.' in older.trained


def test_images_without_a_place_are_errors():
  row = _row('image_of_tool')
  assert _task(row).conversation(row).num_images == 1
  with pytest.raises(ValueError, match="'f' has images.*'transformers'"):
    _task(row, 'transformers-2026-04').render(row)
  with pytest.raises(ValueError, match="'f' has images.*'transformers'"):
    _task(row, 'dialog').render(row)
  row = {
      'messages': [
          {'role': 'system', 'content': [{'type': 'image'}]},
          {'role': 'user', 'content': 'Hi'},
          {'role': 'assistant', 'content': 'Hi!'},
      ],
      'tools': None,
  }
  with pytest.raises(ValueError, match='system message has an image'):
    _task(row).render(row)


def test_sampling_gives_the_templates_prompt():
  row = _row('three_turns')
  task = _task(row, sampling=True)
  assert isinstance(task, g4.data.ChatTask)
  assert task.map(dict(row))['input'] == task.render(row).prompt
