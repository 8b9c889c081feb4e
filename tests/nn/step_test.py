"""What saves memory and time in a training step leaves its numbers alone."""

import functools

from gemma import peft
import jax
import jax.numpy as jnp
from kauldron import kd
import numpy as np
import optax
import pytest

from gemma4_lora import g4
from tests.lib import training

# The others have no feature that these have not: 26B_A4B has 31B's attention,
# and its dense MLP beside the experts.
_VARIANTS = ['Gemma4_E2B', 'Gemma4_26B_A4B']


def _tokens():
  """Two rows, one with padding."""
  tokens = np.random.default_rng(0).integers(3, 1000, (2, 20))
  tokens[1, 13:] = 0
  return jnp.asarray(tokens)


def _made(name, **kwargs):
  """A model in float32 with B far from zero, and its parameters."""
  base = getattr(g4.testing, name)(dtype=jnp.float32)
  targets = ['text']
  if name == 'Gemma4_26B_A4B':
    base, targets = training.one_layer(base), ['text', 'experts']
  else:
    base = training.shallow(base)
  model = g4.nn.LoRA(rank=2, targets=targets, model=base, **kwargs)
  return model, training.random_params(model)


@functools.cache
def _wanted(name):
  """A model, its parameters in float64, and its step without any option."""
  model, params = _made(name)
  with jax.enable_x64(True):  # In float32 these models round to 6e-5.
    params = jax.tree.map(lambda x: x.astype(jnp.float64), params)
    return model, params, _step(model, params)


@functools.cache
def _thin(**kwargs):
  """As `_made`, of one dense layer, and its step."""
  base = training.one_layer(g4.testing.Gemma4_31B(dtype=jnp.float32))
  model = g4.nn.LoRA(rank=2, targets='q', model=base, **kwargs)
  params = training.random_params(model)
  return model, params, _step(model, params)


def _step(model, params):
  """Loss of the tokens that follow, logits and the LoRA leaves' gradients."""
  original, lora = peft.split_params(params)
  tokens = _tokens()
  labels, live = tokens[:, 1:], tokens[:, 1:] > 0

  def loss(lora):
    output = model.apply(
        {'params': peft.merge_params(original, lora)},
        tokens,
        is_training_property=True,
        rngs={'dropout': jax.random.key(1)},
    )
    if output.logits is not None:
      losses = optax.softmax_cross_entropy_with_integer_labels(
          output.logits[:, :-1], labels
      )
    else:
      losses = g4.losses.softmax_cross_entropy(
          output.head.hidden[:, :-1],
          output.head.embedding,
          labels,
          soft_cap=output.head.soft_cap,
          chunk_size=16,
      )
    return (losses * live).sum() / live.sum(), output

  (value, output), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(lora)
  return value, output, grads


def _with(model, **kwargs):
  return model.clone(**kwargs)


def _assert_same_step(got, wanted, *, rtol):
  np.testing.assert_allclose(got[0], wanted[0], rtol=rtol)
  paths = jax.tree.leaves_with_path(wanted[2])
  for (path, y), x in zip(paths, jax.tree.leaves(got[2]), strict=True):
    error = np.linalg.norm(x - y)
    assert error <= rtol * np.linalg.norm(y), jax.tree_util.keystr(path)


@pytest.mark.parametrize('name', _VARIANTS)
def test_all_at_once(name):
  """Loss and gradients, with each option on, against none; in float32."""
  model, params = _made(name)
  wanted = _step(model, params)
  saving = _with(
      model, logits_in_training=False, remat='attention', attention='blockwise'
  )
  got = _step(saving, params)
  assert got[1].logits is None
  assert got[1].hidden_states is None
  _assert_same_step(got, wanted, rtol=2e-5)


@pytest.mark.parametrize(
    ('name', 'remat'), zip(_VARIANTS, ['block', 'dots'], strict=True)
)
def test_blockwise_attention_and_remat(name, remat):
  """Logits of the tokens; those of padding look at nothing that counts."""
  model, params, wanted = _wanted(name)
  with jax.enable_x64(True):
    got = _step(_with(model, attention='blockwise', remat=remat), params)
  live = _tokens() > 0
  np.testing.assert_allclose(
      got[1].logits[live], wanted[1].logits[live], atol=1e-6
  )
  assert np.isfinite(got[1].logits).all()
  _assert_same_step(got, wanted, rtol=1e-6)


def test_remat_draws_the_same_dropout():
  """In the forward pass, and again in the recomputed one."""
  model, params, wanted = _thin(dropout=0.5)
  got = _step(_with(model, remat='block'), params)
  np.testing.assert_allclose(got[1].logits, wanted[1].logits, atol=1e-5)
  _assert_same_step(got, wanted, rtol=1e-5)
  without = _thin()[2]
  assert abs(without[0] - wanted[0]) > 1e-3


def test_blockwise_attention_under_a_mask():
  """Of the user's: two rows packed in one, each with positions of its own."""
  model, params = _made('Gemma4_E2B', attention='blockwise')
  segment = np.array([[0] * 10 + [1] * 10])
  mask = np.tri(20, dtype=bool) & (segment[:, :, None] == segment[:, None])
  positions = np.concatenate([np.arange(10), np.arange(10)])[None]
  tokens = _tokens()[:1]
  packed = model.apply(
      {'params': params}, tokens, attention_mask=mask, positions=positions
  ).logits
  alone = model.apply({'params': params}, tokens.reshape(2, 10)).logits
  np.testing.assert_allclose(packed.reshape(alone.shape), alone, atol=2e-5)


def test_samplers_and_evaluators_get_logits():
  model, params, wanted = _thin()
  model = _with(model, logits_in_training=False)
  call = functools.partial(model.apply, {'params': params}, _tokens())
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
  model, params, wanted = _thin(modules_to_save='input_embedding')
  got = _step(_with(model, logits_in_training=False), params)
  _assert_same_step(got, wanted, rtol=2e-5)


class _KeepLast(kd.train.metric_writer.NoopWriter):
  """Keeps what the Trainer would write of its last step."""

  def write_step_metrics(self, *, step, aux, **kwargs):
    values = aux.compute()
    _WRITTEN.update(values.loss_values, **values.metric_values)


_WRITTEN = {}


def test_the_trainer_with_every_option(tmp_path):
  """The loss by hand, and metrics that need no logits."""
  base = training.one_layer(
      g4.testing.Gemma4_31B(tokens='batch.input', dtype=jnp.float32)
  )
  model = g4.nn.LoRA(
      rank=2,
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
            "attention='gemma' there is nothing to spare",
        ),
    ],
)
def test_unknown_settings(kwargs, message):
  with pytest.raises(ValueError, match=message):
    g4.nn.LoRA(rank=2, model=g4.testing.Gemma4_E2B(), **kwargs)
