"""The bug report's script with our three lines, in Kauldron's own Trainer."""

from gemma import gm
from gemma import peft
import jax
from kauldron import kd
import numpy as np
import pytest

from gemma4_lora import g4
from tests.lib import models
from tests.lib import multimodal
from tests.lib import training


def _init_transform(path):
  return g4.ckpts.SkipLoRA4(wrapped=gm.ckpts.LoadCheckpoint(path=path))


def _loss(aux):
  return float(aux.compute().loss_values['losses/total'])


# E4B has no feature that E2B has not. Layers that differ, and that share keys
# and values, are of E2B: of the others one is enough.
@pytest.mark.parametrize('name', ['Gemma4_E2B', 'Gemma4_31B', 'Gemma4_26B_A4B'])
def test_trains_then_resumes_bitwise(name, tmp_path):
  """20 steps, and 10 + 10 with a stop between, from a released checkpoint.

  With Kauldron's checkpointer and with ours, which is the one that stops.
  """
  bare = models.base(
      name, cut=models.shallow if name == 'Gemma4_E2B' else models.one_layer
  )
  base = g4.testing.make_checkpoint(bare, tmp_path / 'released')
  is_plain = name == 'Gemma4_31B'  # Kauldron's own step and checkpointer.
  # All linears of one model; half as many compile in half the time.
  targets = 'text' if name == 'Gemma4_E2B' else ('q', 'down')
  # Dropout and shuffled data: whatever draws random numbers must resume too.
  model = g4.nn.LoRA(rank=4, alpha=8, dropout=0.1, targets=targets, model=bare)

  step = training.SharedStep(key=str(tmp_path))

  def run(workdir, num_train_steps, checkpointer):
    return training.make_trainer(
        model,
        tmp_path / workdir,
        num_train_steps=num_train_steps,
        init_transform=_init_transform(tmp_path / 'released'),
        checkpointer=checkpointer(save_interval_steps=10),
        trainstep=kd.train.TrainStep() if is_plain else step,
    ).train()

  plain = kd.ckpts.Checkpointer
  stops = plain if is_plain else g4.ckpts.LoRACheckpointer
  whole, aux = run('whole', 20, plain)
  run('cut', 10, stops)
  cut, _ = run('cut', 20, stops)

  assert int(cut.step) == int(whole.step) == 21
  jax.tree.map(np.testing.assert_array_equal, cut.params, whole.params)
  jax.tree.map(np.testing.assert_array_equal, cut.opt_state, whole.opt_state)
  # It was LoRA that learned, all of it, and the base is still the file's.
  original, lora = peft.split_params(whole.params)
  jax.tree.map(np.testing.assert_array_equal, original, base)
  for path, leaf in training.flat(lora).items():
    if path.endswith('.b'):
      assert np.any(leaf), path
  assert _loss(aux) < 7.5  # Random tokens: ln(1024) = 6.9; it starts above 20.


def test_first_loss_is_the_released_models(tmp_path, caplog):
  """B starts at zero, so step 0 shows the restored base, not random init.

  And the start says how much is trained.
  """
  model = models.base(cut=models.one_layer)
  params = g4.testing.make_checkpoint(model, tmp_path / 'released')
  lora = g4.nn.LoRA(rank=4, targets='q', model=model)
  trainer = training.make_trainer(
      lora,
      tmp_path / 'run',
      num_train_steps=0,
      init_transform=_init_transform(tmp_path / 'released'),
  )
  batch = next(iter(trainer.train_ds))
  with caplog.at_level('INFO', logger='absl'):
    _, aux = trainer.train()
  trainable = g4.nn.summary(lora).trainable
  assert f'{trainable:,} trainable parameters' in caplog.text

  logits = jax.jit(model.apply)({'params': params}, batch['input']).logits
  xent = kd.losses.SoftmaxCrossEntropyWithIntLabels(
      logits='preds.logits', labels='batch.target'
  ).get_values(logits, batch['target'])
  np.testing.assert_allclose(_loss(aux), np.mean(xent), rtol=1e-2)


def test_the_multimodal_model(tmp_path):
  """From a multimodal checkpoint, on text alone."""
  base = multimodal.base_of_one_layer('Gemma4_E2B')
  g4.testing.make_checkpoint(base, tmp_path / 'released')
  model = g4.nn.LoRA(rank=2, targets=('q', 'down'), model=base)
  state, aux = training.make_trainer(
      model,
      tmp_path / 'run',
      num_train_steps=0,  # That is one step.
      init_transform=_init_transform(tmp_path / 'released'),
  ).train()
  assert 'vision_encoder' in state.params
  for path, leaf in training.flat(state.params).items():
    if path.endswith('.b'):
      assert np.any(leaf) and np.isfinite(leaf).all(), path
  assert np.isfinite(_loss(aux))


def test_without_tokens_the_trainer_says_what_to_write(tmp_path):
  model = g4.nn.LoRA(rank=2, model=g4.testing.Gemma4_E2B())
  trainer = training.make_trainer(model, tmp_path, num_train_steps=1)
  with pytest.raises(ValueError, match=r'Write Gemma4_E2B\(tokens="batch.inp'):
    trainer.train()


def test_alpha_counts_in_one_process(tmp_path):
  """Two Trainers whose models differ in alpha alone learn differently."""
  base = models.base(cut=models.one_layer)
  g4.testing.make_checkpoint(base, tmp_path / 'released')

  def params(alpha):
    trainer = training.make_trainer(
        g4.nn.LoRA(rank=2, alpha=alpha, targets='mlp', model=base),
        tmp_path / str(alpha),
        num_train_steps=2,
        init_transform=_init_transform(tmp_path / 'released'),
        checkpointer=None,
    )
    return trainer.train()[0].params

  one, two, again = params(2.0), params(8.0), params(2.0)
  b = 'layer_0.mlp.lora.down.b'
  assert np.any(training.flat(one)[b] != training.flat(two)[b])
  np.testing.assert_array_equal(training.flat(one)[b], training.flat(again)[b])
