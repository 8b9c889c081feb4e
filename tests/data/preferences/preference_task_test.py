"""Tests of preference pairs: both rendered as ChatTask renders them."""

import dataclasses
import pickle

from gemma import gm
import jax
import numpy as np
import pytest
import sentencepiece as spm

from gemma4_lora import g4

_TOKENIZER = g4.testing.Gemma4Tokenizer()
_TASK = g4.data.PreferenceTask(
    tokenizer=_TOKENIZER, max_length=64, inline_markup='parse'
)
_ROW = {'prompt': '2 + 2?', 'chosen': '4.', 'rejected': '22.'}
_THOUGHT = '<|channel>thought\nHm.\n<channel|>'


def _user(text):
  return {'role': 'user', 'content': text}


def _model(text):
  return {'role': 'assistant', 'content': text}


def _human(text):
  return {'from': 'human', 'value': text}


def _gpt(text):
  return {'from': 'gpt', 'value': text}


def _assert_same(got, wanted):
  assert set(got) == set(wanted)
  for key, value in got.items():
    np.testing.assert_array_equal(value, wanted[key])


def _of_chats(*rows, **kwargs):
  """What ChatTask makes of the two conversations, stacked."""
  task = g4.data.ChatTask(
      tokenizer=_TOKENIZER,
      max_length=64,
      loss_on='last',
      inline_markup='parse',
      **kwargs,
  )
  pair = [task.map(row) for row in rows]
  return {
      key: np.stack([example[key].reshape(-1) for example in pair])
      for key in pair[0]
  }


@pytest.mark.parametrize('thinking', ['keep', 'mask', 'strip', 'empty'])
@pytest.mark.parametrize('template', ['dialog', 'transformers'])
def test_both_are_what_chat_task_gives(thinking, template):
  row = dict(_ROW, chosen=_THOUGHT + ' 4. ')
  task = dataclasses.replace(_TASK, thinking=thinking, template=template)
  wanted = _of_chats(
      {'prompt': '2 + 2?', 'response': row['chosen']},
      {'prompt': '2 + 2?', 'response': row['rejected']},
      thinking=thinking,
      template=template,
  )
  _assert_same(task.map(row), wanted)


@pytest.mark.parametrize(
    'layout, row',
    [
        ('messages', {'prompt': [_user('2 + 2?')], 'end': _model}),
        ('messages', {'prompt': '2 + 2?', 'end': _model}),
        ('messages', {'prompt': [_user('2 + 2?')], 'end': str}),
        ('messages', {'prompt': [_user('2 + 2?')], 'whole': _model}),
        ('messages', {'prompt': None, 'whole': _model}),
        ('sharegpt', {'prompt': [_human('2 + 2?')], 'end': _gpt}),
        ('sharegpt', {'prompt': '2 + 2?', 'end': str}),
    ],
)
def test_layouts_say_the_same(layout, row):
  prompt = row['prompt']
  task = dataclasses.replace(
      _TASK, layout=layout, in_prompt=None if prompt is None else 'prompt'
  )

  def make(text):
    if 'whole' in row:
      return [_user('2 + 2?'), row['whole'](text)]
    return text if row['end'] is str else [row['end'](text)]

  pair = {'chosen': make('4.'), 'rejected': make('22.')}
  if prompt is not None:
    pair['prompt'] = prompt
  _assert_same(task.map(pair), _TASK.map(_ROW))


def test_loss_is_on_the_last_turn_alone():
  task = dataclasses.replace(
      _TASK, layout='messages', in_tools='tools', in_system='system'
  )
  before = [_user('Hi.'), _model('Hello.'), _user('2 + 2?')]
  out = task.map(
      {
          'prompt': before,
          'chosen': [_model('4.')],
          'rejected': [_model('22.')],
          'tools': [{'name': 'f'}],
          'system': 'Be kind.',
          'id': 7,
      }
  )
  assert out.pop('id') == 7
  for i, text in enumerate(('4.', '22.')):
    trained = out['target'][i][out['loss_mask'][i]]
    assert _TOKENIZER.decode(trained) == f'{text}<turn|>'
    whole = _TOKENIZER.decode(out['input'][i])
    assert 'Be kind.<|tool>declaration:f{}<tool|><turn|>' in whole


def test_an_example_can_be_shown(capsys):
  g4.data.show(_TASK.map(_ROW), tokenizer=_TOKENIZER)
  out = capsys.readouterr().out
  assert '⟦4.<turn|>⟧' in out and '⟦22.<turn|>⟧' in out


@pytest.mark.parametrize(
    'row, match',
    [
        (dict(_ROW, rejected='4.'), "'chosen' and 'rejected' are the same"),
        (dict(_ROW, rejected='4. ' * 40), 'max_length=64'),
        (dict(_ROW, chosen=3), 'should be text'),
        ({'prompt': 'a', 'chosen': 'b'}, "no field 'rejected'"),
    ],
)
def test_a_malformed_row_is_an_error_or_left_out(row, match):
  with pytest.raises((ValueError, KeyError), match=match) as e:
    _TASK.map(row)
  assert 'In the row: {' in str(e.value)
  task = dataclasses.replace(_TASK, max_malformed=1)
  assert task.map(row) is None
  assert pickle.loads(pickle.dumps(task)).malformed.num_malformed == 0
  with pytest.raises(ValueError, match='2 of 2 rows are malformed'):
    task.map(row)


def test_texts_without_a_prompt_are_an_error():
  with pytest.raises(ValueError, match='needs `in_prompt=`'):
    dataclasses.replace(_TASK, in_prompt=None)


def test_another_vocabulary_is_no_malformed_row(tmp_path):
  """It is wrong for all rows, however many may be left out."""
  spm.SentencePieceTrainer.Train(
      sentence_iterator=iter(['the cat sleeps', 'le chat dort']),
      model_prefix=str(tmp_path / 'other'),
      vocab_size=300,
      byte_fallback=True,
      hard_vocab_limit=False,
      minloglevel=2,
  )
  tokenizer = gm.text.Gemma4Tokenizer(path=tmp_path / 'other.model')
  task = dataclasses.replace(_TASK, tokenizer=tokenizer, max_malformed=5)
  with pytest.raises(ValueError, match="other.model is not Gemma 4's"):
    task.map(_ROW)


def test_answers_share_the_images_of_their_prompt(tmp_path):
  tokenizer = g4.testing.make_tokenizer(
      tmp_path / 'full.model', vocab_size=262144
  )
  common = dict(
      layout='messages',
      in_images='images',
      tokenizer=tokenizer,
      max_length=40,
      max_soft_tokens=4,
      patch_size=4,
  )
  task = g4.data.PreferenceTask(**common)
  image = np.random.default_rng(0).integers(0, 256, (24, 12, 3), np.uint8)
  question = _user([{'type': 'image'}, {'type': 'text', 'text': 'Who?'}])
  row = {
      'prompt': [question],
      'chosen': [question, _model('A cat.')],
      'rejected': [_model('A dog.')],
      'images': [image],
  }
  example = task.map(row)
  chat = g4.data.ChatTask(**common)
  for i, answer in enumerate(('A cat.', 'A dog.')):
    wanted = chat.map(
        {'messages': [question, _model(answer)], 'images': [image]}
    )
    np.testing.assert_array_equal(example['input'][i], wanted['input'])
    jax.tree.map(
        np.testing.assert_array_equal, example['images'], wanted['images']
    )
  assert (example['input'] == -2).sum(axis=-1).tolist() == [2, 2]
  specs = jax.tree.map(lambda x: (x.shape, x.dtype), task.field_specs())
  assert specs == jax.tree.map(lambda x: (x.shape, x.dtype), example)
  with pytest.raises(ValueError, match="'images' has 0 images"):
    task.map(row | {'images': None})


def test_images_in_one_answer_alone_are_malformed():
  image = [{'type': 'image'}, {'type': 'text', 'text': '4.'}]
  task = dataclasses.replace(_TASK, layout='messages', in_images='images')
  row = {'prompt': [_user('a')], 'chosen': [_model(image)], 'images': None}
  with pytest.raises(ValueError, match="'chosen' has 1 images in its answer"):
    task.map(row | {'rejected': [_model('22.')]})
