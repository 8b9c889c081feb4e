"""Loss and metrics with Kauldron's keys, against Kauldron's own on logits."""

import types

import jax.numpy as jnp
from kauldron import kd
import numpy as np
import pytest

from gemma4_lora import g4

_KEYS = dict(labels='batch.target', mask='batch.mask')


def _context(*, seed=0, vocab=50):
  """What Kauldron's losses see, with logits and with a head."""
  rng = np.random.default_rng(seed)
  hidden = rng.standard_normal((2, 9, 8), np.float32)
  table = rng.standard_normal((vocab, 8), np.float32)
  table[30] = table[20]  # Two that are always equal.
  logits = 30 * np.tanh(hidden @ table.T / 30)
  likely, random = logits.argmax(-1), rng.integers(0, vocab, (2, 9))
  target = np.where(np.arange(9) % 2, likely, random)
  mask = rng.random((2, 9, 1)) < 0.7
  return types.SimpleNamespace(
      step=0,
      preds=types.SimpleNamespace(
          logits=jnp.asarray(logits),
          head=g4.losses.Head(
              hidden=jnp.asarray(hidden),
              embedding=jnp.asarray(table),
              soft_cap=30.0,
          ),
      ),
      batch=dict(target=target[..., None], mask=mask),
  )


@pytest.mark.parametrize('normalize_by', ['mask', 'values'])
def test_loss(normalize_by):
  kwargs = _KEYS | dict(weight=0.5, normalize_by=normalize_by)
  ours = g4.losses.SoftmaxCrossEntropyWithIntLabels(
      head='preds.head', chunk_size=4, **kwargs
  )
  theirs = kd.losses.SoftmaxCrossEntropyWithIntLabels(
      logits='preds.logits', **kwargs
  )
  context = _context()
  np.testing.assert_allclose(
      ours(context=context), theirs(context=context), rtol=1e-6
  )


@pytest.mark.parametrize('mask', [None, 'batch.mask'])
def test_accuracy(mask):
  keys = _KEYS | dict(mask=mask)
  ours = g4.losses.Accuracy(head='preds.head', chunk_size=4, **keys)
  theirs = kd.metrics.Accuracy(logits='preds.logits', **keys)
  context = _context()
  got = ours(context=context)
  assert 0.3 < got < 0.9
  np.testing.assert_array_equal(got, theirs(context=context))


def test_accuracy_of_equal_logits():
  """The first of them is the prediction, as it is argmax's."""
  context = _context()
  head = context.preds.head.replace(hidden=jnp.ones((1, 2, 8)))
  table = np.zeros_like(head.embedding)
  table[[20, 30]] = 1
  labels = jnp.array([[[20], [30]]])
  state = g4.losses.Accuracy(head='head', labels='labels').get_state(
      head=head.replace(embedding=jnp.asarray(table)), labels=labels
  )
  assert state.compute() == 0.5


def test_perplexity_is_that_of_all_batches():
  """Not a mean of perplexities, and not one of batches of unequal size."""
  metric = g4.losses.Perplexity(head='preds.head', chunk_size=4, **_KEYS)
  loss = kd.losses.SoftmaxCrossEntropyWithIntLabels(
      logits='preds.logits', **_KEYS
  )
  contexts = [_context(seed=seed) for seed in (0, 1)]
  got, states = (
      [x.get_state_from_context(context) for context in contexts]
      for x in (metric, loss)
  )
  np.testing.assert_allclose(
      got[0].merge(got[1]).compute(),
      np.exp(states[0].merge(states[1]).compute()),
      rtol=1e-6,
  )


@pytest.mark.parametrize(
    'cls', ['SoftmaxCrossEntropyWithIntLabels', 'Accuracy', 'Perplexity']
)
def test_labels_without_their_last_axis(cls):
  context = _context()
  context.batch['target'] = context.batch['target'][..., 0]
  metric = getattr(g4.losses, cls)(head='preds.head', **_KEYS)
  with pytest.raises(ValueError, match=r'must be \(2, 9, 1\).*are \(2, 9\)'):
    metric(context=context)
