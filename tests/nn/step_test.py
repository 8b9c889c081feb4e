"""What saves memory and time in a training step leaves its numbers alone."""

import functools

import jax
import jax.numpy as jnp
from kauldron import kd
import numpy as np
import optax
import pytest

from gemma4_lora import g4
from tests.lib import models
from tests.lib import random_params
from tests.lib import steps
from tests.lib import training


def _with(model, **kwargs):
  return model.clone(**kwargs)


def test_all_at_once():
  """Loss and gradients, with each option on, against none; no logits."""
  model, params, wanted = steps.wanted('Gemma4_E2B')
  saving = _with(
      model, logits_in_training=False, remat='attention', attention='blockwise'
  )
  with jax.enable_x64(True):
    got = steps.step(saving, params)
  assert got[1].logits is None
  assert got[1].hidden_states is None
  # The loss without logits is in float32.
  steps.assert_same_step(got, wanted, rtol=2e-5)


def test_blockwise_attention_and_remat():
  """Logits of the tokens; those of padding look at nothing that counts."""
  model, params, wanted = steps.wanted('Gemma4_26B_A4B')
  with jax.enable_x64(True):
    got = steps.step(_with(model, attention='blockwise', remat='dots'), params)
  live = steps.tokens() > 0
  np.testing.assert_allclose(
      got[1].logits[live], wanted[1].logits[live], atol=1e-6
  )
  assert np.isfinite(got[1].logits).all()
  steps.assert_same_step(got, wanted, rtol=1e-6)


def test_remat_draws_the_same_dropout():
  """In the forward pass, and again in the recomputed one."""
  model, params, wanted = steps.thin(dropout=0.5)
  got = steps.step(_with(model, remat='block'), params)
  np.testing.assert_allclose(got[1].logits, wanted[1].logits, atol=1e-5)
  steps.assert_same_step(got, wanted, rtol=1e-5)
  without = steps.thin()[2]
  assert abs(without[0] - wanted[0]) > 1e-3


def test_blockwise_attention_under_a_mask():
  """Of the user's: two rows packed in one, each with positions of its own."""
  model = models.lora(cut=models.one_layer, rank=2, attention='blockwise')
  params = random_params.make(model)
  segment = np.array([[0] * 10 + [1] * 10])
  mask = np.tri(20, dtype=bool) & (segment[:, :, None] == segment[:, None])
  positions = np.concatenate([np.arange(10), np.arange(10)])[None]
  tokens = steps.tokens()[:1]
  packed = model.apply(
      {'params': params}, tokens, attention_mask=mask, positions=positions
  ).logits
  alone = model.apply({'params': params}, tokens.reshape(2, 10)).logits
  np.testing.assert_allclose(packed.reshape(alone.shape), alone, atol=2e-5)


def test_samplers_and_evaluators_get_logits():
  model, params, wanted = steps.thin()
  model = _with(model, logits_in_training=False)
  call = functools.partial(model.apply, {'params': params}, steps.tokens())
  sampling = call()
  assert type(sampling).__name__ == 'Output'
  assert not hasattr(sampling, 'head')
  np.testing.assert_allclose(sampling.logits, wanted[1].logits, atol=1e-5)
  evaluating = call(is_training_property=False)
  np.testing.assert_allclose(evaluating.logits, wanted[1].logits, atol=1e-5)
  assert evaluating.head.hidden.shape == (2, 20, model.config.embed_dim)
  last = call(is_training_property=True, return_last_only=True)
  assert last.logits.shape == (2, model.config.num_embed)
  asked = call(is_training_property=True, return_hidden_states=True)
  np.testing.assert_array_equal(asked.hidden_states, asked.head.hidden)


def test_a_trained_embedding_is_what_the_head_has():
  """`modules_to_save` puts a copy in the table's place: loss and gradient."""
  model, params, wanted = steps.thin(modules_to_save='input_embedding')
  got = steps.step(_with(model, logits_in_training=False), params)
  steps.assert_same_step(got, wanted, rtol=2e-5)


class _KeepLast(kd.train.metric_writer.NoopWriter):
  """Keeps what the Trainer would write of its last step."""

  def write_step_metrics(self, *, step, aux, **kwargs):
    values = aux.compute()
    _WRITTEN.update(values.loss_values, **values.metric_values)


_WRITTEN = {}


def test_the_trainer_with_every_option(tmp_path):
  """The loss by hand, and metrics that need no logits."""
  base = models.base(cut=models.one_layer, dtype=jnp.float32)
  model = g4.nn.LoRA(
      rank=2,
      targets=('q', 'down'),
      model=base,
      logits_in_training=False,
      remat='attention',
      attention='blockwise',
  )
  keys = dict(head='preds.head', labels='batch.target')
  trainer = training.make_trainer(
      model,
      tmp_path,
      num_train_steps=0,
      train_losses={
          'xentropy': g4.losses.SoftmaxCrossEntropyWithIntLabels(**keys)
      },
      train_metrics={
          'accuracy': g4.losses.Accuracy(**keys),
          'perplexity': g4.losses.Perplexity(**keys),
      },
      writer=_KeepLast(),
  )
  trainer.train()
  params = trainer.init_state().params
  batch = next(iter(trainer.train_ds))
  logits = model.apply({'params': params}, batch['input']).logits
  labels = jnp.asarray(batch['target'][..., 0])
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
  hits = (logits.argmax(-1) == labels).mean()
  np.testing.assert_allclose(_WRITTEN['losses/xentropy'], loss, rtol=1e-5)
  np.testing.assert_allclose(_WRITTEN['metrics/accuracy'], hits, rtol=1e-5)
  np.testing.assert_allclose(
      _WRITTEN['metrics/perplexity'], np.exp(loss), rtol=1e-4
  )


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(remat='blocks'), "remat='blocks'.*'none', 'block', 'attention'"),
        (dict(attention='flash'), "'flash'.*'gemma', 'blockwise', 'splash'"),
        (
            dict(remat='attention'),
            "attention='gemma' it would be computed again",
        ),
    ],
)
def test_unknown_settings(kwargs, message):
  with pytest.raises(ValueError, match=message):
    g4.nn.LoRA(rank=2, model=g4.testing.Gemma4_E2B(), **kwargs)
