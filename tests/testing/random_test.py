"""Files that are made when they are opened."""

import os

import jax
import numpy as np
import pytest

from gemma4_lora import g4
from gemma4_lora.gemma4 import _upstream
from tests.lib import models
from tests.lib import states
from tests.lib import training


@pytest.mark.parametrize('layout', ['nested', 'hf'])
def test_a_checkpoint_is_made_once(layout, tmp_path):
  model = models.shallow(g4.testing.Gemma4_E2B(tokens='batch.input'))
  path = g4.testing.RandomCheckpoint(
      model=model, layout=layout, folder=tmp_path
  )
  assert not list(tmp_path.iterdir())
  made = os.fspath(path)
  assert [os.fspath(x) for x in tmp_path.iterdir()] == [made]
  before = os.stat(made).st_mtime_ns
  assert os.fspath(path) == made
  assert os.stat(made).st_mtime_ns == before
  shapes = _upstream.abstract_params(model)
  state = states.wrap(
      jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  )
  loaded = g4.ckpts.PartialLoad(path=path).transform(state).params
  for path, leaf in training.flat(loaded).items():
    # What transformers does not save of layers that share keys and values.
    if 'kv_einsum' not in path and 'key_norm' not in path:
      assert np.any(leaf), path


def test_other_models_have_other_files(tmp_path):
  tiny = [
      g4.testing.Gemma4_E2B(),
      g4.testing.Gemma4_E2B(text_only=False),
      g4.testing.Gemma4_E2B_Images(),
      g4.testing.Gemma4_E4B(),
      models.shallow(g4.testing.Gemma4_E2B()),
  ]
  paths = {
      g4.testing.RandomCheckpoint(model=m, layout=f, folder=tmp_path).path
      for m in tiny
      for f in ('nested', 'hf')
  }
  assert len(paths) == 2 * len(tiny)


def test_a_layout_that_is_none():
  with pytest.raises(
      ValueError, match="RandomCheckpoint: layout must be .*'hf'.*'npz'"
  ):
    g4.testing.RandomCheckpoint(model=g4.testing.Gemma4_E2B(), layout='npz')


def test_the_vocabulary_has_image_tokens(tmp_path):
  path = g4.testing.ImageVocabulary(folder=tmp_path)
  tokenizer = g4.testing.Gemma4Tokenizer(path=path)
  ids = tokenizer.encode('<|image|>')
  assert ids == [tokenizer.special_tokens.IMAGE_PLACEHOLDER]
  model = g4.testing.Gemma4_31B_Images()
  assert tokenizer.vocab_size == model.config.num_embed
