"""Tests of masks of `template=PATH`: what is trained is what a server asks for."""

import dataclasses
import random

from absl import logging
import numpy as np
import pytest

from gemma4_lora import g4
from tests.lib import chat_templates
from tests.lib import random_rows

_TASK = g4.data.ChatTask(
    layout='messages',
    tokenizer=g4.testing.Gemma4Tokenizer(),
    max_length=4096,
    thinking='keep',
)
_THOUGHT = '<|channel>thought\nHm.<channel|>'


@pytest.fixture(name='path', scope='module')
def _path(tmp_path_factory):
  folder = tmp_path_factory.mktemp('dialog')
  return chat_templates.put(folder, chat_templates.DIALOG)


def _task(path, **kwargs):
  return dataclasses.replace(_TASK, template=path, **kwargs)


def _row(*messages, **kwargs):
  return {'messages': list(messages)} | kwargs


def _user(text='Go.'):
  return {'role': 'user', 'content': text}


def _model(text='Done.', **kwargs):
  return {'role': 'assistant', 'content': text} | kwargs


_CALL = {'function': {'name': 'f', 'arguments': {'x': 1}}, 'id': 'a'}
_ANSWER = {'role': 'tool', 'content': 'one', 'tool_call_id': 'a', 'name': 'f'}


def _rows(number=60):
  """Yields rows by chance, of which some messages are not trained."""
  rng = random.Random(0)
  while number:
    case = random_rows.valid(rng)
    if case.task['layout'] == 'messages':
      number -= 1
      # Declared tools are Google's own spelling: another test's.
      yield {k: v for k, v in case.row.items() if k != 'tools'}


@pytest.mark.parametrize('loss_on', ['all', 'last'])
@pytest.mark.parametrize('thinking', ['keep', 'mask', 'strip', 'strip_all'])
def test_masks_are_those_of_our_own_rendering(path, thinking, loss_on):
  kwargs = dict(in_system='system', thinking=thinking, loss_on=loss_on)
  ours = dataclasses.replace(_TASK, **kwargs)
  theirs = _task(path, **kwargs)
  for row in _rows():
    # A message that is not trained may stand at the end of a turn.
    assert theirs.render(row) == ours.render(row), row


def test_calls_are_trained_up_to_where_samplers_stop_and_answers_are_not(path):
  row = _row(_user(), _model('', tool_calls=[_CALL]), _ANSWER, _model())
  rendered = _task(path).render(row)
  assert rendered.trained == (
      '<|tool_call>call:f{x:1}<tool_call|><|tool_response>Done.<turn|>'
  )
  assert 'response:f{value:<|"|>one<|"|>}' in rendered.text


def test_the_prompt_of_sampling_is_the_templates(path):
  row = _row(_user(), _model(), _user('Again.'), _model('Twice.'))
  sampled = _task(path, sampling=True).map(dict(row))
  assert sampled['input'].endswith('<|turn>user\nAgain.<turn|>\n<|turn>model\n')
  assert sampled['target'] == 'Twice.<turn|>'


def test_an_empty_thought_of_the_prompt_is_there_and_not_trained(tmp_path):
  path = chat_templates.put(tmp_path, chat_templates.LARGE)
  empty = '<|channel>thought\n<channel|>'
  row = _row(_user(), _model('a'), _user(), _model('b'))
  rendered = _task(path).render(row)
  assert rendered.text.count(empty) == 2
  assert rendered.prompt.endswith('<|turn>model\n' + empty)
  assert rendered.trained == 'a<turn|>b<turn|>'
  native = dataclasses.replace(_TASK, thinking='empty')
  assert rendered == native.render(row)
  with pytest.raises(ValueError, match="writes it itself.*'strip_all'"):
    _task(path, thinking='empty')


def test_history_that_is_written_otherwise_is_an_error_that_says_where(
    tmp_path,
):
  path = chat_templates.put(tmp_path, chat_templates.FORGETS)
  row = _row(_user(), _model('a', reasoning='Hm.'), _user(), _model('b'))
  with pytest.raises(ValueError) as e:
    _task(path).render(row)
  said = str(e.value)
  assert "'messages[1]'" in said and path in said
  assert "It has '<|channel>thought" in said and "the whole has 'a" in said
  assert "thinking='strip'" in said and "loss_on='last'" in said
  # As it advises.
  for kwargs in (dict(thinking='strip'), dict(loss_on='last')):
    assert 'b<turn|>' in _task(path, **kwargs).render(row).trained
  counting = _task(path, max_malformed=1)
  assert counting.map(dict(row)) is None
  (reason,) = counting.malformed.reasons
  assert 'does not fit template=' in reason


def test_a_prompt_that_the_text_has_not_is_an_error(tmp_path):
  text = chat_templates.DIALOG.replace(
      "'<turn|>\\n<|turn>model\\n'", "'<turn|>\\n<|turn>model\\nSure: '"
  )
  path = chat_templates.put(tmp_path, text)
  with pytest.raises(ValueError, match='its prompt is no prefix.*Sure: '):
    _task(path).render(_row(_user(), _model()))


def test_messages_in_a_row_have_their_own_weights(path):
  row = _row(_user(), _model('a '), _model('b ', weight=0), _model('c'))
  assert _task(path).render(row).trained == 'a c<turn|>'


def test_a_thought_that_a_server_begins_and_a_row_lacks_is_said(
    tmp_path, monkeypatch
):
  begins = chat_templates.DIALOG.replace(
      "{%- if ns.role != 'model' -%}",
      "{%- if messages[-1].role == 'tool' -%}{{ '<|channel>thought\\n' }}"
      "{%- elif ns.role != 'model' -%}",
  )
  path = chat_templates.put(tmp_path, begins)
  said = []
  monkeypatch.setattr(
      logging, 'log_first_n', lambda *args: said.append(args[1] % args[3:])
  )
  row = _row(_user(), _model('', tool_calls=[_CALL]), _ANSWER, _model())
  assert _task(path).render(row).trained.endswith('Done.<turn|>')
  (line,) = said
  assert "'messages[3]' has no thought" in line
  row['messages'][-1]['reasoning'] = 'Hm.'
  rendered = _task(path).render(row)
  # The server has begun it.
  assert rendered.trained.endswith('<|tool_response>Hm.<channel|>Done.<turn|>')
  masked = _task(path, thinking='mask').render(row)
  assert masked.text == rendered.text
  assert masked.trained.endswith('<|tool_response>Done.<turn|>')
  assert len(said) == 1
  # Our own rendering says the same.
  task = dataclasses.replace(_TASK, template='transformers')
  task = dataclasses.replace(task, enable_thinking=True)
  del row['messages'][-1]['reasoning']
  task.render(row)
  assert len(said) == 2


def test_packed_rows_are_those_rows(path):
  one = _task(path).map(_row(_user(), _model()))
  packed = g4.data.PackedSource(
      data_source=[_row(_user(), _model())] * 3, transforms=[_task(path)]
  )
  assert packed[0]['loss_mask'].sum() == 3 * one['loss_mask'].sum()


def test_images_stand_where_they_are_shown(path):
  parts = [{'type': 'image'}, {'type': 'text', 'text': 'What?'}]
  row = _row(
      {'role': 'user', 'content': parts},
      _model(),
      image=np.zeros((96, 96, 3), np.uint8),
  )
  kwargs = dict(in_images='image', max_soft_tokens=70, sampling=True)
  ours = dataclasses.replace(_TASK, **kwargs).map(dict(row))
  theirs = _task(path, **kwargs).map(dict(row))
  assert theirs['input'] == ours['input']
  assert 'user\n<|image|>What?<turn|>' in theirs['input']
  assert np.array_equal(theirs['images'].patches, ours['images'].patches)
  with pytest.raises(ValueError, match='has 1 images.*in_images='):
    _task(path).map(dict(row))


def test_pairs_of_answers_are_rendered_by_it(path):
  row = {'prompt': 'Go.', 'chosen': 'Yes.', 'rejected': 'No.'}
  task = g4.data.PreferenceTask(tokenizer=_TASK.tokenizer, max_length=64)
  ours = task.map(dict(row))
  theirs = dataclasses.replace(task, template=path).map(dict(row))
  for key, value in ours.items():
    assert np.array_equal(theirs[key], value), key
