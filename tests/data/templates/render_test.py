"""Tests of rendering: against dialog, and what holds of all templates."""

import dataclasses
import json
import pathlib
import random

import dialog
import numpy as np
import pytest

from gemma4_lora import g4

_TESTDATA = pathlib.Path(__file__).parents[2] / 'testdata'
_TOKENIZER = g4.testing.Gemma4Tokenizer()
_TASK = g4.data.ChatTask(
    layout='messages',
    tokenizer=_TOKENIZER,
    max_length=4096,
    inline_markup='parse',
    empty_answers='train',
)

_THOUGHT = '<|channel>thought\nHm.\n<channel|>'
_EMPTY = '<|channel>thought\n<channel|>'
_POLICIES = ('keep', 'mask', 'strip', 'strip_all', 'empty')
_policies = pytest.mark.parametrize('thinking', _POLICIES)
_losses = pytest.mark.parametrize('loss_on', ['all', 'last'])


def _cases(name):
  cases = json.loads((_TESTDATA / name).read_text(encoding='utf-8'))
  return pytest.mark.parametrize('case', cases, ids=lambda case: case['name'])


def _task(case=None, **kwargs):
  if case is not None:
    tools = 'tools' if 'tools' in case['row'] else None
    kwargs = {
        'in_tools': tools,
        'enable_thinking': case['enable_thinking'],
    } | kwargs
  return dataclasses.replace(_TASK, **kwargs)


def _chat(*texts, system=None):
  """Returns a row in which user and model take turns."""
  roles = ('user', 'assistant')
  messages = [
      {'role': roles[i % 2], 'content': text} for i, text in enumerate(texts)
  ]
  if system is not None:
    messages.insert(0, {'role': 'system', 'content': system})
  return {'messages': messages}


@_cases('dialog_template.json')
def test_text_is_that_of_dialog(case):
  rendered = _task(case).render(case['row'])
  # Where a call is the last, tools run next: dialog ends the turn in training,
  # and not in prompts, and samplers do not wait for that end.
  end = '<tool_call|><turn|>'
  expected = case['text']
  if expected.endswith(end):
    expected = f'{expected.removesuffix("<turn|>")}<|tool_response>'
    assert case['name'] == 'call_last'
  assert rendered.text == expected
  if 'prompt' in case:
    assert rendered.prompt == case['prompt']
  assert rendered.prompt + rendered.response == rendered.text


_THINKING_CHAT = _chat('a', _THOUGHT + 'b', 'c', _THOUGHT + 'd')


@pytest.mark.parametrize(
    'thinking, text, trained',
    [
        ('keep', (_THOUGHT, _THOUGHT), (_THOUGHT, _THOUGHT)),
        ('mask', (_THOUGHT, _THOUGHT), ('', '')),
        ('strip', ('', _THOUGHT), ('', _THOUGHT)),
        ('strip_all', ('', ''), ('', '')),
        ('empty', (_EMPTY, _EMPTY), ('', '')),
    ],
)
def test_thoughts_are_where_the_policy_has_them(thinking, text, trained):
  rendered = _task(thinking=thinking).render(_THINKING_CHAT)
  assert rendered.text == (
      f'<|turn>user\na<turn|>\n<|turn>model\n{text[0]}b<turn|>\n'
      f'<|turn>user\nc<turn|>\n<|turn>model\n{text[1]}d<turn|>'
  )
  assert rendered.trained == f'{trained[0]}b<turn|>{trained[1]}d<turn|>'


def test_stripping_is_that_of_dialog():
  conversation = dialog.Conversation(
      dialog.User('a'),
      dialog.Model(dialog.Thought('Hm.\n'), 'b'),
      dialog.User('c'),
      dialog.Model(dialog.Thought('Hm.\n'), 'd'),
  )
  for thinking, keep_last in (('strip', True), ('strip_all', False)):
    expected = conversation.strip_thoughts(keep_last_turn=keep_last)
    text = _task(thinking=thinking).render(_THINKING_CHAT).text
    assert text == expected.as_text(training=True)


def test_only_the_last_turn_is_trained_on_demand():
  task = _task(loss_on='last', thinking='empty')
  rendered = task.render(_chat('a', 'b', 'c', 'd'))
  assert rendered.trained == 'd<turn|>'
  # As in Hugging Face's prompts, earlier turns have no empty thought.
  assert rendered.text.count(_EMPTY) == 1
  assert rendered.prompt.endswith('<|turn>model\n' + _EMPTY)


def test_calls_are_trained_up_to_where_samplers_stop_and_answers_are_not():
  call = {'function': {'name': 'f', 'arguments': '{"x": 1}'}}
  row = {
      'messages': [
          {'role': 'user', 'content': 'Go.'},
          {'role': 'assistant', 'tool_calls': [call, call]},
          {'role': 'tool', 'content': 'one'},
          {'role': 'tool', 'content': 'two'},
          {'role': 'assistant', 'content': 'Done.'},
      ]
  }
  text = '<|tool_call>call:f{x:1}<tool_call|>'
  assert (
      _task().render(row).trained == f'{text}{text}<|tool_response>Done.<turn|>'
  )
  special = _TOKENIZER.special_tokens
  ids, weights = _task().tokenize(_task().render(row))
  stops = [special.BEGIN_OF_TOOL_RESPONSE, special.END_OF_TURN]
  trained = ids[weights > 0]
  assert list(trained[np.isin(trained, stops)]) == stops


def _random_rows(seed, number=20):
  """Returns conversations with space and thoughts in odd places."""
  rng = random.Random(seed)
  pieces = ['a', ' ', '\n', '\n\n', 'Où ', '🙂', '  ', '.', 'the', '\t', '12']

  def text(*, starts_with_newline=True):
    text = ''.join(rng.choices(pieces, k=rng.randint(0, 6)))
    return text if starts_with_newline else text.lstrip('\n')

  for _ in range(number):
    turns = []
    for _ in range(rng.randint(1, 3)):
      thought = rng.choice(['', _THOUGHT])
      # A newline that begins an earlier answer would be one token with that of
      # the prompt, were both tokenized as one: but the model says it.
      turns += [text(), thought + text(starts_with_newline=False)]
    turns[-1] += rng.choice(['', '\n'])
    yield _chat(*turns, system=rng.choice([None, text()]))


@_policies
@_losses
@pytest.mark.parametrize('template', ['dialog', 'transformers'])
def test_prompt_of_sampling_is_an_exact_prefix(thinking, loss_on, template):
  task = _task(thinking=thinking, loss_on=loss_on, template=template)
  sampling = dataclasses.replace(task, sampling=True)
  for row in _random_rows(seed=0):
    ids, weights = task.tokenize(task.render(row))
    prompt = _TOKENIZER.encode(sampling.map(row)['input'], add_bos=True)
    assert list(ids[: len(prompt)]) == prompt
    if loss_on == 'last':
      assert not weights[: len(prompt)].any()
    # What follows is the model's, to its end.
    rest = _TOKENIZER.decode(ids[len(prompt) :])
    assert rest == sampling.map(row)['target']
    assert weights[-1] == 1


@_policies
def test_every_turns_prompt_is_an_exact_prefix(thinking):
  """What a sampler is given for each turn of the model, by dialog."""
  task = _task(thinking=thinking)
  for row in _random_rows(seed=1):
    ids, weights = task.tokenize(task.render(row))
    turns, after = [], 0
    for message in row['messages']:
      if message['role'] != 'assistant':
        cls = dialog.System if message['role'] == 'system' else dialog.User
        turns.append(cls(message['content']))
        continue
      open_turn = [dialog.Model(dialog.Thought())] * (thinking == 'empty')
      prompt = dialog.Conversation(*turns, *open_turn).as_text()
      prompt = _TOKENIZER.encode(prompt, add_bos=True)
      assert list(ids[: len(prompt)]) == prompt
      assert not weights[after : len(prompt)].any()
      # Of the model's own turn, the text as it was trained.
      rest = _TOKENIZER.decode(ids[len(prompt) :])
      said = rest.split('<turn|>')[0]
      prefix = _EMPTY if thinking == 'empty' else ''
      turns.append(dialog.Model(dialog.Text(prefix + said)))
      after = len(prompt) + len(_TOKENIZER.encode(said + '<turn|>'))


@pytest.mark.parametrize(
    'name, value, match',
    [
        ('thinking', 'stirp', "thinking='stirp' is none.*mean 'strip'"),
        ('loss_on', 'first', "loss_on='first' is none of .*'all', 'last'"),
        ('template', 'hf', "template='hf' is none of .*'transformers'"),
        ('layout', 'message', "layout='message' is none.*mean 'messages'"),
    ],
)
def test_an_unknown_choice_is_an_error(name, value, match):
  with pytest.raises(ValueError, match=match):
    _task(**{name: value})


def test_an_empty_thought_of_a_model_that_thinks_is_an_error():
  with pytest.raises(ValueError, match='enable_thinking=True contradicts'):
    _task(thinking='empty', enable_thinking=True)


@pytest.mark.parametrize('text', ['a<channel|>b', 'a<|channel>thought\nb'])
def test_half_a_thought_is_an_error(text):
  with pytest.raises(ValueError, match="'messages.1..content' .* other half"):
    _task().map(_chat('a', text))


def test_the_last_prompt_is_a_prefix_also_of_an_answer_without_weight():
  """Else its first newline and the prompt's last would be one token."""
  row = _chat('a', 'b', 'c', '\nd')
  row['messages'][-1]['weight'] = 0
  ids, _ = _task().tokenize(_task().render(row))
  prompt = _task(sampling=True).map(row)['input']
  prompt = _TOKENIZER.encode(prompt, add_bos=True)
  assert list(ids[: len(prompt)]) == prompt
