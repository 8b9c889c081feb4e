"""DPO against gemma's own loss, and the reference against the base."""

import dataclasses

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
  base = models.base(dtype=jnp.float32)
  model = g4.nn.LoRA(
      rank=2,
      model=base,
      targets='attention',
      modules_to_save=['final_norm'],
      dropout=0.2,
      with_reference=True,
  )
  params = random_params.make(model)
  original, lora = peft.split_params(params)
  batch = _batch()
  with_logits = gm.losses.DpoLoss(
      tokens='batch.target',
      sequence_mask='batch.loss_mask',
      policy_logits='preds.logits',
      anchor_logits='preds.reference.logits',
      tau=0.3,
      label_smoothing=0.1,
  )
  plain = jax.jit(base.apply)({'params': original}, batch['input']).logits

  def both(lora):
    preds = model.apply(
        {'params': peft.merge_params(original, lora)},
        batch['input'],
        is_training_property=True,
        rngs={'dropout': jax.random.key(0)},
    )
    ours = _LOSS.get_values(
        head=preds.head,
        reference=preds.reference.head,
        tokens=batch['target'],
        sequence_mask=batch['loss_mask'],
    )
    gemmas = with_logits.get_values(
        tokens=batch['target'],
        sequence_mask=batch['loss_mask'],
        policy_logits=preds.logits,
        anchor_logits=plain,
    )
    return (ours.sum(), gemmas.sum()), preds.reference.logits

  @jax.jit
  def both_with_gradients(lora):
    losses, pullback, reference = jax.vjp(both, lora, has_aux=True)
    return losses, pullback((1.0, 0.0)), pullback((0.0, 1.0)), reference

  (ours, gemmas), (got,), (wanted,), reference = both_with_gradients(lora)
  np.testing.assert_allclose(ours, gemmas, rtol=1e-5)
  np.testing.assert_allclose(reference, plain, atol=2e-5)
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5)
  assert max(abs(x).max() for x in jax.tree.leaves(got)) > 1e-3


def _head(seed):
  keys = jax.random.split(jax.random.key(seed), 2)
  return g4.losses.Head(
      hidden=jax.random.normal(keys[0], (3, 2, 5, 8)),
      embedding=jax.random.normal(jax.random.key(9), (16, 8)),
      soft_cap=30.0,
  )


def _arguments(**kwargs):
  tokens = jax.random.randint(jax.random.key(2), (3, 2, 5), 0, 16)
  mask = jnp.asarray(np.arange(5) > 1) & jnp.ones((3, 2, 5), bool)
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
