"""DPO against gemma's own loss, and the reference against the base."""

import dataclasses
import functools

from gemma import gm
from gemma import peft
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4_lora import g4
from tests.lib import models
from tests.lib import random_params

_KEYS = dict(
    head='preds.head',
    reference='preds.reference.head',
    tokens='batch.target',
    sequence_mask='batch.loss_mask',
)
_LOSS = g4.losses.DpoLoss(**_KEYS, tau=0.3, label_smoothing=0.1)


def _batch():
  task = g4.data.PreferenceTask(
      tokenizer=g4.testing.Gemma4Tokenizer(), max_length=24
  )
  rows = [
      {'prompt': pair['en'], 'chosen': pair['fr'], 'rejected': pair['en']}
      for pair in list(g4.testing.EnFrPairs(split='test'))[:3]
  ]
  examples = [task.map(row) for row in rows]
  return jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *examples)


def test_loss_and_gradients_are_those_of_gemma():
  """With the reference that two models would give, and B far from zero."""
  base = models.base(cut=models.one_layer, dtype=jnp.float32)
  model = g4.nn.LoRA(
      rank=2,
      model=base,
      targets='attention',
      modules_to_save=['final_norm'],
      dropout=0.2,
      with_reference=True,
  )
  params = random_params.make(model)
  batch = _batch()
  apply = functools.partial(
      model.apply,
      is_training_property=True,
      rngs={'dropout': jax.random.key(0)},
  )
  preds = jax.jit(apply)({'params': params}, batch['input'])
  original = peft.split_params(params).original
  plain = jax.jit(base.apply)({'params': original}, batch['input']).logits
  np.testing.assert_allclose(preds.reference.logits, plain, atol=2e-5)

  keys = dict(tokens=batch['target'], sequence_mask=batch['loss_mask'])
  with_logits = gm.losses.DpoLoss(
      tokens='batch.target',
      sequence_mask='batch.loss_mask',
      policy_logits='preds.logits',
      anchor_logits='preds.reference.logits',
      tau=0.3,
      label_smoothing=0.1,
  )

  @functools.partial(jax.value_and_grad, has_aux=True)
  def gemmas(hidden):
    logits = 30 * jnp.tanh(hidden @ preds.head.embedding.T / 30)
    losses = with_logits.get_values(
        policy_logits=logits, anchor_logits=plain, **keys
    )
    return losses.sum(), logits

  @jax.value_and_grad
  def ours(hidden):
    head = preds.head.replace(hidden=hidden)
    reference = preds.reference.head
    return _LOSS.get_values(head=head, reference=reference, **keys).sum()

  (wanted, logits), wanted_grad = jax.jit(gemmas)(preds.head.hidden)
  got, got_grad = jax.jit(ours)(preds.head.hidden)
  np.testing.assert_allclose(preds.logits, logits, atol=2e-5)
  np.testing.assert_allclose(got, wanted, rtol=1e-5)
  np.testing.assert_allclose(got_grad, wanted_grad, rtol=1e-3, atol=1e-5)
  assert abs(got_grad).max() > 1e-3


def _head(seed):
  hidden = np.random.default_rng(seed).standard_normal((3, 2, 5, 8))
  table = np.random.default_rng(9).standard_normal((16, 8))
  return g4.losses.Head(
      hidden=jnp.asarray(hidden, jnp.float32),
      embedding=jnp.asarray(table, jnp.float32),
      soft_cap=30.0,
  )


def _arguments(**kwargs):
  tokens = np.random.default_rng(8).integers(0, 16, (3, 2, 5))
  mask = np.broadcast_to(np.arange(5) > 1, (3, 2, 5))
  return (
      dict(head=_head(0), reference=_head(1), tokens=tokens, sequence_mask=mask)
      | kwargs
  )


def test_accuracy_is_of_the_pairs_whose_chosen_gained_more():
  metric = g4.losses.DpoAccuracy(**_KEYS)
  arguments = _arguments()
  # Where the loss of a pair is below log(2), the chosen is preferred.
  loss = dataclasses.replace(_LOSS, label_smoothing=0.0)
  preferred = loss.get_values(**arguments) < np.log(2)
  assert 0 < preferred.mean() < 1
  got = metric.get_state(**arguments).compute()
  np.testing.assert_allclose(got, preferred.mean())
  same = metric.get_state(**_arguments(reference=_head(0))).compute()
  assert same == 0


@pytest.mark.parametrize('name', ['tokens', 'sequence_mask'])
def test_what_is_no_pair_is_an_error(name):
  value = _arguments()[name][:, :1]
  with pytest.raises(ValueError, match=rf'{name}= must be \[\*B, 2, L\]'):
    _LOSS.get_values(**_arguments(**{name: value}))


def test_samplers_and_init_have_no_reference():
  base = models.base()
  model = g4.nn.LoRA(rank=2, model=base, with_reference=True)

  def leaves(**kwargs):
    tokens = jnp.ones((1, 4), int)
    params = random_params.make(model)
    output = jax.eval_shape(
        lambda: model.apply({'params': params}, tokens, **kwargs)
    )
    return getattr(output, 'reference', None)

  assert leaves() is None
  assert leaves(is_training_property=False).logits.shape == (1, 4, 1024)


def test_a_reference_whose_base_changes_is_an_error():
  base = g4.testing.Gemma4_31B()
  with pytest.raises(ValueError, match="init_lora_weights='pissa' changes it"):
    g4.nn.LoRA(
        rank=2, model=base, with_reference=True, init_lora_weights='pissa'
    )
