"""Data, templates and samplers in Gemma 4's own vocabulary of 262,144 pieces."""

import dataclasses
import random
import re

import numpy as np
import pytest

from gemma4_lora import g4
from gemma4_lora.data import _tokens
from gemma4_lora.data.conversations import _control_tags
from tests.lib import chat_templates
from tests.lib import models
from tests.lib import random_params
from tests.lib import random_rows
from tests.lib import sampling
from tests.lib import vocabulary

_TAGS = {
    46: '<|tool>',
    47: '<tool|>',
    48: '<|tool_call>',
    49: '<tool_call|>',
    50: '<|tool_response>',
    51: '<tool_response|>',
    52: '<|"|>',
    98: '<|think|>',
    100: '<|channel>',
    101: '<channel|>',
    105: '<|turn>',
    106: '<turn|>',
    255999: '<|image>',
    256000: '<|audio>',
    258880: '<|image|>',
    258881: '<|audio|>',
    258882: '<image|>',
    258883: '<audio|>',
    258884: '<|video|>',
}
# What merges with a line break, a tag or a space beside it.
_BORDERS = ('\n', '\n\n', '\n\n\n', ' ', '  ', '\t', '  \n', '', 'a', '🙂', '0')


def _task(**kwargs):
  defaults = {'layout': 'messages', 'max_length': 4096}
  return g4.data.ChatTask(tokenizer=vocabulary.tokenizer(), **defaults | kwargs)


def _row(*texts):
  roles = ('user', 'assistant') * len(texts)
  return {
      'messages': [
          {'role': role, 'content': text}
          for role, text in zip(roles, texts, strict=False)
      ]
  }


def test_tokens_are_those_of_llama_cpp():
  golden = vocabulary.golden()
  assert len(golden) == 46
  for text, tokens in golden:
    assert vocabulary.tokenizer().encode(text) == tokens, text


def test_each_tag_is_a_token_and_refused_in_texts():
  """All pieces that look like a tag, not those that we have thought of."""
  tokenizer = vocabulary.tokenizer()
  pieces = tokenizer.tokens
  assert len(pieces) == 262_144
  for token, tag in _TAGS.items():
    assert tokenizer.encode(tag) == [token]
    assert pieces[token] == tag
  alike = [
      piece
      for piece in pieces
      if re.fullmatch(r'<\|[^<>]+>|<[^<>]+\|>|<unused\d+>', piece)
  ]
  assert set(_TAGS.values()) <= set(alike)
  assert len(alike) > 6000  # Most are `<unused…>`.
  for piece in alike:
    with pytest.raises(ValueError, match='tag '):
      _control_tags.check(f'a {piece} b', field='x')


def test_tokenizer_passes_for_gemma_4():
  _tokens.check_vocabulary(vocabulary.tokenizer(), name='x')


@pytest.mark.parametrize('template', ['dialog', 'transformers', 'path'])
def test_prompt_has_the_tokens_of_a_server(template, tmp_path):
  """Which tokenizes all of it at once, whatever merges at borders of turns."""
  if template == 'path':
    template = chat_templates.put(tmp_path, chat_templates.DIALOG)
  train = _task(template=template, loss_on='last')
  ask = _task(template=template, sampling=True)
  rng = random.Random(1)
  for _ in range(60):
    texts = [
        rng.choice(_BORDERS)
        + rng.choice(('Go', 'x\ny', '…'))
        + rng.choice(_BORDERS)
        for _ in range(rng.choice((2, 4, 6)))
    ]
    example = train.map(_row(*texts))
    first = np.asarray(example['loss_mask']).reshape(-1).nonzero()[0][0]
    ids = np.asarray(example['input']).reshape(-1)[: first + 1]
    prompt = vocabulary.tokenizer().encode(
        ask.map(_row(*texts))['input'], add_bos=True
    )
    assert ids.tolist() == prompt, texts


def test_rows_by_chance_say_what_they_should():
  """The text of `random_rows`, in tokens of this vocabulary."""
  rng = random.Random(4)
  tokenizer = vocabulary.tokenizer()
  for _ in range(60):
    case = random_rows.valid(rng)
    task = _task(**case.task | {'thinking': 'keep'})
    example = task.map(case.row)
    trained = np.asarray(example['loss_mask']).reshape(-1) > 0
    targets = np.asarray(example['target']).reshape(-1)[trained]
    assert tokenizer.decode(targets.tolist()) == case.trained


def test_sampler_goes_on_from_the_prompt_of_the_data():
  """Tokens of a sampler with a cache, and of whole passes without one."""
  model = models.base('Gemma4_E2B', cut=models.one_layer, dtype=np.float32)
  config = dataclasses.replace(model.config, num_embed=262_144)
  model = model.clone(config=config)
  params = random_params.make(model)
  ask = _task(template='transformers', sampling=True)
  kwargs = {
      'prompt': ask.map(_row('\n\nGo\n', 'x'))['input'],
      'tokenizer': vocabulary.tokenizer(),
      'max_new_tokens': 6,
  }
  new = sampling.sampled(model, params, **kwargs)
  assert new == sampling.greedy(model, params, **kwargs)
  assert max(new) > 1024  # Beyond the tiny one.
