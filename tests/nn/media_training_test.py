"""Images and text through a real Kauldron Trainer."""

import dataclasses
import functools

from gemma import gm
from grain import python as grain
import jax
import jax.numpy as jnp
from kauldron import kd
import numpy as np
import pytest

from gemma4_lora import g4
from tests.lib import models
from tests.lib import multimodal
from tests.lib import training

_IMAGES = jax.tree.map(np.asarray, multimodal.images())


@dataclasses.dataclass(frozen=True)
class _WithImages(grain.RandomAccessDataSource):
  """Sequences of text and two images, padded to one number of patches."""

  num_examples: int = 4

  def __len__(self) -> int:
    return self.num_examples

  def __getitem__(self, index):
    tokens = np.random.default_rng(index).integers(3, 1000, 19, np.int32)
    tokens[[1, 5]] = 255999  # Begin of image.
    tokens[[2, 3, 6]] = -2
    target = tokens[1:, None]
    is_text = (target >= 0) & (target < 1000)
    return {
        'input': tokens[:-1],
        'target': np.where(is_text, target, 0),
        'loss_mask': is_text,
        # Of one sequence: batching adds the axis.
        'images': jax.tree.map(lambda x: x[0], _IMAGES),
    }


_model = functools.partial(
    models.lora,
    cut=models.one_layer,
    base_dtype=jnp.bfloat16,
    text_only=False,
    images='batch.images',
    rank=2,
    dropout=0.1,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Losses(kd.train.metric_writer.NoopWriter):
  """Keeps the loss of each step."""

  values: list[float] = dataclasses.field(default_factory=list)

  def write_step_metrics(self, *, step, aux, **kwargs):
    del step, kwargs
    self.values.append(float(aux.compute().loss_values['losses/total']))


def _trainer(model, tmp_path, **kwargs):
  g4.testing.make_checkpoint(model.model, tmp_path / 'released')
  return training.make_trainer(
      model,
      tmp_path / 'run',
      data_source=_WithImages(),
      train_losses={
          'xent': kd.losses.SoftmaxCrossEntropyWithIntLabels(
              logits='preds.logits',
              labels='batch.target',
              mask='batch.loss_mask',
          )
      },
      # A batch of one does not divide among devices.
      sharding=kd.sharding.ShardingStrategy(batch=kd.sharding.REPLICATED),
      init_transform=g4.ckpts.SkipLoRA4(
          wrapped=gm.ckpts.LoadCheckpoint(path=tmp_path / 'released')
      ),
      checkpointer=kd.ckpts.NoopCheckpointer(),
      **kwargs,
  )


def test_text_and_vision_learn_together(tmp_path):
  """The loss falls, every B moves, and the base stays the checkpoint's.

  Padded patches are in each batch, and far from zero: one NaN of theirs, in a
  loss or gradient, would be in every parameter that follows.
  """
  model = _model(
      'Gemma4_31B', targets=['text', 'vision', 'multimodal_projections']
  )
  losses = _Losses()
  trainer = _trainer(
      model, tmp_path, num_train_steps=20, batch_size=1, writer=losses
  )
  batch = next(iter(trainer.train_ds))
  assert np.any(batch['images'].positions_xy == -1)
  state, _ = trainer.train()

  assert len(losses.values) == 21
  assert np.isfinite(losses.values).all()
  assert np.mean(losses.values[-4:]) < np.mean(losses.values[:4]) - 0.5
  written = g4.testing.make_checkpoint(model.model, tmp_path / 'again')
  base = training.flat(written)
  adapted = {linear.row.lora_path for linear in model.adapted}
  for path, leaf in training.flat(state.params).items():
    assert np.isfinite(leaf).all() or 'clip' in path, path
    if '.lora.' not in path:
      np.testing.assert_array_equal(leaf, base[path], err_msg=path)
    elif path.endswith('.b'):
      # Each layer of a stacked weight, too.
      layers = leaf if 'stacked_layers.block' in path else leaf[None]
      for layer in layers:
        assert np.abs(layer).max() > 1e-3, path
      adapted.remove(path.removesuffix('.b'))
  assert not adapted


def test_more_than_one_sequence_with_audio():
  model = _model('Gemma4_E2B')
  inputs = multimodal.inputs(audio=True)
  inputs['tokens'] = jnp.ones((2, 3, 4), jnp.int32)
  del inputs['images']
  with pytest.raises(ValueError, match='takes audio of one.*has 6.*MultiSteps'):
    jax.eval_shape(model.init, jax.random.key(0), **inputs)


def test_images_of_other_sequences_than_the_tokens():
  model = _model('Gemma4_31B')
  inputs = multimodal.inputs(audio=False)
  inputs['tokens'] = jnp.ones((2, 4), jnp.int32)
  with pytest.raises(ValueError, match='images= are of 1 seq.*tokens of 2'):
    jax.eval_shape(model.init, jax.random.key(0), **inputs)


def test_images_of_gemma_3():
  images = jnp.zeros((1, 1, 24, 24, 3), jnp.uint8)
  model = _model('Gemma4_31B')
  with pytest.raises(ValueError, match='as a PreprocessedVisionInput.*Got'):
    jax.eval_shape(
        model.init, jax.random.key(0), jnp.ones((1, 4), int), images=images
    )
