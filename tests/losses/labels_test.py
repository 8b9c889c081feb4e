"""A label that is no token never makes a number that looks like a loss."""

import dataclasses
import types

from gemma import gm
import jax.numpy as jnp
from kauldron import kd
import numpy as np
import pytest

from gemma4_lora import g4
from gemma4_lora.losses import _labels

_VOCAB = 7
_KEYS = {'labels': 'batch.target', 'mask': 'batch.mask'}
_PAIRS = {'tokens': 'batch.target', 'sequence_mask': 'batch.mask'}
_LOSSES = {
    'kd': kd.losses.SoftmaxCrossEntropyWithIntLabels(
        logits='preds.logits', **_KEYS
    ),
    'g4': g4.losses.SoftmaxCrossEntropyWithIntLabels(
        head='preds.head', **_KEYS
    ),
    'gm_dpo': gm.losses.DpoLoss(
        policy_logits='preds.logits', anchor_logits='preds.anchor', **_PAIRS
    ),
    'g4_dpo': g4.losses.DpoLoss(head='preds.a', reference='preds.b', **_PAIRS),
}


def _found(labels, mask=None, losses=None):
  batch = {'target': jnp.asarray(labels), 'mask': mask}
  return _labels.num_outside(
      losses or _LOSSES,
      types.SimpleNamespace(batch=batch),
      num_tokens=_VOCAB,
  )


@pytest.mark.parametrize('label', [-100, -1, _VOCAB])
def test_counted_labels_outside_of_the_vocabulary(label):
  labels = [[[0], [label], [label], [_VOCAB - 1]]]
  assert _found(labels) == dict.fromkeys(_LOSSES, 2)
  mask = jnp.array([[[1.0], [0.0], [0.5], [1.0]]])
  found = _found(labels, mask)
  assert found == dict.fromkeys(_LOSSES, 1)
  with pytest.raises(ValueError, match='in eval: 1 labels that .*losses.g4 '):
    _labels.check(found, num_tokens=_VOCAB, where='in eval')


def test_labels_that_a_loss_of_the_users_reads_are_its_own():
  class Own(kd.losses.SoftmaxCrossEntropyWithIntLabels):
    """Leaves -100 out by itself."""

    def get_values(self, logits, labels):
      is_token = labels >= 0
      return is_token * super().get_values(logits, labels * is_token)

  own = {'own': Own(logits='preds.logits', labels='batch.target')}
  assert not _found([[[-100]]], losses=own)
  of_preds = kd.losses.SoftmaxCrossEntropyWithIntLabels(
      logits='preds.logits', labels='preds.target'
  )
  assert not _found([[[-100]]], losses={'x': of_preds})


@pytest.mark.parametrize('loss', _LOSSES.values(), ids=_LOSSES)
def test_a_subclass_that_reads_labels_as_its_base_does(loss):
  class Named(type(loss)):
    """Has nothing of its own."""

  named = Named(**{x.name: getattr(loss, x.name) for x in _init_fields(loss)})
  assert _found([[[0], [-100]]], losses={'x': named}) == {'x': 1}


def _init_fields(loss):
  return [x for x in dataclasses.fields(loss) if x.init]


def _head():
  rng = np.random.default_rng(0)
  return g4.losses.Head(
      hidden=jnp.asarray(rng.normal(size=(1, 2, 3, 4)), jnp.float32),
      embedding=jnp.asarray(rng.normal(size=(_VOCAB, 4)), jnp.float32),
  )


@pytest.mark.parametrize('label', [-100, _VOCAB])
@pytest.mark.parametrize('name', ['g4', 'g4_dpo'])
def test_without_our_step_the_loss_is_nan(name, label):
  """Of a label that counts, and of no other."""
  tokens = jnp.array([[[1, 2, label], [3, 4, 5]]])

  def loss(mask):
    if name == 'g4':
      return _LOSSES[name](
          head=_head(), labels=tokens[..., None], mask=mask[..., None]
      )
    kwargs = {'head': _head(), 'reference': _head()}
    return _LOSSES[name](tokens=tokens, sequence_mask=mask, **kwargs)

  everywhere = jnp.ones(tokens.shape, bool)
  assert jnp.isnan(loss(everywhere))
  assert jnp.isfinite(loss(everywhere.at[0, 0, 2].set(False)))
