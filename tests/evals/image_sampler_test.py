"""Sampling about images in a real Trainer, against whole forward passes."""

import dataclasses

import jax
import jax.numpy as jnp
from kauldron import kd
import numpy as np
import pytest

from gemma4_lora import g4
from tests.lib import events
from tests.lib import models
from tests.lib import training

_KEYS = dict(head='preds.head', labels='batch.target', mask='batch.loss_mask')
_NEW_TOKENS = 4


@pytest.fixture(name='task', scope='module')
def _task(tmp_path_factory):
  path = tmp_path_factory.mktemp('tokenizer') / 'full.model'
  return g4.data.ChatTask(
      layout='messages',
      in_images='images',
      tokenizer=g4.testing.make_tokenizer(path, vocab_size=262144),
      max_length=64,
      max_images=2,
      max_soft_tokens=4,
      patch_size=4,
  )


def _row(text, *sizes):
  rng = np.random.default_rng(len(text))
  return {
      'messages': [
          {'role': 'user', 'content': text},
          {'role': 'assistant', 'content': 'A cat.'},
      ],
      'images': [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes],
  }


_ROWS = [
    # The first has fewer soft tokens than there is room for.
    _row('Look: <|image|> and <|image|>?', (12, 36), (24, 24)),
    _row('<|image|> Who is it?', (24, 12)),
    _row('Good morning.'),
]


def _dataset(task, *, batch_size=None):
  return kd.data.py.DataSource(
      data_source=_ROWS * (1 if batch_size is None else 3),
      shuffle=False,
      num_epochs=1 if batch_size is None else None,
      batch_size=batch_size,
      num_workers=0,
      transforms=[task],
  )


def _evaluator(task, **kwargs):
  kwargs = {
      'run': kd.evals.EveryNSteps(n=10),
      'ds': _dataset(dataclasses.replace(task, sampling=True)),
      'max_new_tokens': _NEW_TOKENS,
      'cache_length': 64,
      'pad_length': 48,
  } | kwargs
  return g4.evals.SamplerEvaluator(**kwargs)


def _model(images='batch.images', **kwargs):
  # With a layer that looks both ways within an image. It takes larger tokens for
  # its last.
  base = models.base(
      'Gemma4_31B', text_only=False, images=images, dtype=jnp.float32
  )
  return g4.nn.LoRA(
      rank=2, targets='attention', model=base, logits_in_training=False
  )


def _trainer(model, workdir, evaluator, task, **kwargs):
  trainer = training.make_trainer(
      model,
      workdir,
      num_train_steps=1,
      train_losses={'x': g4.losses.SoftmaxCrossEntropyWithIntLabels(**_KEYS)},
      writer=g4.train.TerminalWriter(),
      checkpointer=kd.ckpts.NoopCheckpointer(),
      **kwargs,
  )
  return dataclasses.replace(
      trainer,
      train_ds=_dataset(task, batch_size=8),
      evals={'sampling': evaluator},
  )


def _greedy(model, params, task):
  """What is most likely after each prompt, as tokens are in training."""

  @jax.jit
  def logits(tokens, images):
    return model.apply({'params': params}, tokens, images=images).logits[0]

  texts = []
  for row in _ROWS:
    example = task.map(row)
    length = int(np.argmax(example['loss_mask'][:, 0])) + 1
    tokens = np.where(np.arange(64) < length, example['input'], 0)
    images = jax.tree.map(lambda x: jnp.asarray(x[None]), example['images'])
    for i in range(length, length + _NEW_TOKENS):
      tokens[i] = jnp.argmax(logits(jnp.asarray(tokens[None]), images)[i - 1])
    new = tokens[length : length + _NEW_TOKENS].tolist()
    texts.append(task.tokenizer.decode(new))
  return texts


def test_it_samples_from_the_images_of_a_row_in_training(task, tmp_path):
  """Two images, one and none; LoRA on and off; after a step of training."""
  model = _model()
  trainer = _trainer(model, tmp_path, _evaluator(task), task)
  state, _ = trainer.train()
  trainer.evals['sampling'].evaluate(state, step=10)
  for folder, lora, step in (
      ('sampling', model, 10),
      ('sampling_base', model.clone(enabled=False), 0),  # Once.
  ):
    found = events.scalars(tmp_path / folder)
    assert found['summaries/answer'][step] == _greedy(lora, state.params, task)
    assert found['summaries/prompt'][0][1].startswith('<|turn>user\n<|image|> ')


def test_a_model_that_cannot_see_the_images(task, tmp_path):
  for model, match in (
      (_model(images=None), r"'sampling'.* the model reads none.* text_only="),
      (_model().model, r'is a Gemma4_31B. Wrap it'),
  ):
    evaluator = _evaluator(task, model=model, with_base=False)
    with pytest.raises(ValueError, match=match):
      _trainer(_model(), tmp_path, evaluator, task)


def test_a_prompt_that_the_cache_has_no_room_for(task, tmp_path):
  evaluator = _evaluator(task, cache_length=16, with_base=False)
  trainer = _trainer(_model(), tmp_path, evaluator, task)
  state = kd.train.TrainState(
      step=jnp.asarray(0), params={}, opt_state=None, collections={}
  )
  with pytest.raises(
      ValueError, match='has 32 tokens, .*room for 16, .*Raise `cache_length='
  ):
    trainer.evals['sampling'].evaluate(state, step=0)
