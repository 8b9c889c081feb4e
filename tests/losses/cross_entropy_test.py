"""The chunked cross-entropy against optax's on whole logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gemma4_lora import g4

_SIZES = dict(chunk_size=6, vocab_tile=16)


def _inputs(
    *, batch=(2,), length=13, width=8, vocab=50, dtype=jnp.float32, scale=4
):
  """Hidden states and a table whose logits reach into the soft-cap."""
  rng = np.random.default_rng(0)
  hidden = scale * rng.standard_normal((*batch, length, width))
  table = 2 * rng.standard_normal((vocab, width))
  labels = rng.integers(0, vocab, (*batch, length))
  return jnp.asarray(hidden, dtype), jnp.asarray(table, dtype), labels


def _whole(hidden, table, labels, *, soft_cap, label_smoothing=0.0, z_loss=0.0):
  """The same, from logits, as the papers write it."""
  logits = jnp.einsum('...d,vd->...v', hidden, table).astype(jnp.float32)
  if soft_cap is not None:
    logits = soft_cap * jnp.tanh(logits / soft_cap)
  target = jax.nn.one_hot(labels, len(table))
  target = optax.smooth_labels(target, label_smoothing)
  loss = optax.softmax_cross_entropy(logits, target)
  return loss + z_loss * jax.nn.logsumexp(logits, axis=-1) ** 2


@functools.cache
def _program(loss, **settings):
  """Losses, and gradients to hidden states and table."""

  def both(hidden, table, labels, weights):
    losses = functools.partial(loss, labels=labels, **settings)
    values, pullback = jax.vjp(losses, hidden, table)
    return values, pullback(weights)

  return jax.jit(both)


def _both(inputs, weights, settings, **sizes):
  """Values and gradients, in chunks and whole."""
  ours = _program(g4.losses.softmax_cross_entropy, **settings, **sizes)
  inputs = (*inputs, np.asarray(weights, np.float32))
  return ours(*inputs), _program(_whole, **settings)(*inputs)


def _assert_close(got, wanted):
  """Both are float32, summed in different orders."""

  def check(x, y):
    error = np.linalg.norm(np.asarray(x, np.float64) - y)
    assert error <= 1e-6 * np.linalg.norm(np.asarray(y, np.float64))

  jax.tree.map(check, got, wanted)


@pytest.mark.parametrize(
    'settings',
    [
        dict(soft_cap=30.0),
        dict(soft_cap=30.0, label_smoothing=0.1, z_loss=1e-2),
        dict(soft_cap=None, label_smoothing=0.3, z_loss=0.5),
    ],
)
def test_equals_optax_on_whole_logits(settings):
  """Neither length nor vocabulary is a multiple of its tile."""
  # Of logits of 100, float32 has lost more digits than the bound has.
  inputs = _inputs(scale=4 if settings['soft_cap'] else 1)
  weights = np.random.default_rng(1).random((2, 13)) < 0.6
  got, wanted = _both(inputs, weights, settings, **_SIZES)
  _assert_close(got, wanted)
  # Where nothing is differentiated, other code runs.
  loss = functools.partial(g4.losses.softmax_cross_entropy, **settings)
  losses = jax.jit(functools.partial(loss, **_SIZES))(*inputs)
  _assert_close(losses, wanted[0])


@pytest.mark.parametrize(
    ('chunk_size', 'vocab_tile'),
    [(1, 50), (2, 1), (26, 1000), (1000, 1), (1000, 50)],
)
def test_sizes_of_tiles_change_nothing(chunk_size, vocab_tile):
  sizes = dict(chunk_size=chunk_size, vocab_tile=vocab_tile)
  got, wanted = _both(_inputs(), np.ones((2, 13)), {'soft_cap': 30.0}, **sizes)
  _assert_close(got, wanted)


@pytest.mark.parametrize('live', [[], [(1, 7)], [(0, 12)]])
def test_gradients_of_few_live_tokens(live):
  """Zero where nothing is live, and not zero where one token is."""
  weights = np.zeros((2, 13), np.float32)
  for place in live:
    weights[place] = 1
  got, wanted = _both(_inputs(), weights, {'soft_cap': 30.0}, **_SIZES)
  _assert_close(got, wanted)
  nonzero = np.abs(got[1][0]).sum(-1) > 0
  assert {tuple(x) for x in np.argwhere(nonzero).tolist()} == set(live)


def test_more_batch_axes():
  inputs = _inputs(batch=(2, 3), length=5)
  got, wanted = _both(inputs, np.ones((2, 3, 5)), {'soft_cap': 30.0}, **_SIZES)
  _assert_close(got, wanted)


@pytest.mark.parametrize('soft_cap', [30.0, None])
def test_a_sure_token_keeps_its_digits(soft_cap):
  """Loss and gradient of a token whose probability rounds to 1."""
  hidden, table, labels = _inputs()
  # The label's entry is some 18 above all others.
  hidden = np.zeros_like(hidden)
  hidden[..., 0] = 0.2
  table = np.array(table)
  table[:, 0] = 0
  table[7, 0] = 90
  table, labels = jnp.asarray(table), np.full_like(labels, 7)

  def loss(hidden):
    return g4.losses.softmax_cross_entropy(
        hidden, table, labels, soft_cap=soft_cap, **_SIZES
    ).sum()

  value, grad = jax.jit(jax.value_and_grad(loss))(hidden)
  want, want_grad = _in_float64(hidden, table, soft_cap=soft_cap)
  assert 0 < want < 1e-3
  np.testing.assert_allclose(value, want, rtol=1e-5)
  np.testing.assert_allclose(grad[..., 0], want_grad, rtol=1e-5)


def test_probabilities_of_large_logits_keep_their_digits():
  """All logits are near 1000, where float32 has steps of 6e-5."""
  _, table, labels = _inputs()
  table = np.array(table)
  table[:, 0] += 1000
  # Logits are entries of the table as they are.
  hidden = np.zeros((*labels.shape, table.shape[-1]), np.float32)
  hidden[..., 0] = 1

  def loss(hidden, table):
    return g4.losses.softmax_cross_entropy(
        hidden, table, labels, **_SIZES
    ).sum()

  to_hidden, to_table = jax.jit(jax.grad(loss, (0, 1)))(hidden, table)
  wide = np.asarray(table, np.float64)
  p = np.exp(wide[:, 0] - wide[:, 0].max())
  p = p / p.sum() - np.eye(len(wide))[np.asarray(labels)]
  # Feature 0 is near 1000 times a sum that is 0.
  _assert_close(to_hidden[..., 1:], p @ wide[:, 1:])
  _assert_close(to_table[:, 0], p.sum((0, 1)))


def _in_float64(hidden, table, *, soft_cap):
  """Loss, and gradient to feature 0, where all labels are 7."""
  table = np.asarray(table, np.float64)
  logits, slope = np.asarray(hidden, np.float64) @ table.T, 1.0
  if soft_cap is not None:
    slope = 1 - np.tanh(logits / soft_cap) ** 2
    logits = soft_cap * np.tanh(logits / soft_cap)
  others = np.delete(np.exp(logits - logits[..., 7:8]), 7, axis=-1).sum(-1)
  p = np.exp(logits - logits[..., 7:8]) / (1 + others)[..., None]
  p[..., 7] = -others / (1 + others)  # p - 1
  return np.log1p(others).sum(), (p * slope) @ table[:, 0]


def test_bfloat16_is_summed_in_float32():
  hidden, table, labels = _inputs(dtype=jnp.bfloat16, vocab=4000)
  losses = g4.losses.softmax_cross_entropy
  loss = jax.jit(functools.partial(losses, soft_cap=30.0))
  in_full = jax.jit(functools.partial(_whole, soft_cap=30.0))
  want = in_full(hidden.astype(np.float32), table.astype(np.float32), labels)
  np.testing.assert_allclose(loss(hidden, table, labels), want, rtol=1e-5)


def test_neither_pass_holds_logits():
  """No array of the program, in either pass, is of tokens by vocabulary."""
  hidden, table, labels = _inputs(length=64, vocab=512)

  def loss(hidden, table):
    return g4.losses.softmax_cross_entropy(
        hidden, table, labels, soft_cap=30.0, chunk_size=16, vocab_tile=64
    ).sum()

  text = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(hidden, table))
  assert 'f32[2,8,64]' in text  # A tile.
  for whole in ('[2,64,512]', '[128,512]', '[2,8,512]'):
    assert whole not in text


@pytest.mark.parametrize('spec', [('devices', None), (None, 'devices')])
def test_on_sharded_tables_and_batches(spec):
  """A table sharded by vocabulary or by feature, a batch by sequence."""
  mesh = jax.sharding.Mesh(jax.devices(), ('devices',))

  def put(x, *axes):
    spec = jax.sharding.PartitionSpec(*axes)
    return jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))

  inputs = hidden, table, labels = _inputs(batch=(8,), vocab=64)
  weights = np.ones((8, 13), np.float32)
  loss = _program(g4.losses.softmax_cross_entropy, soft_cap=30.0, **_SIZES)
  on_all = [put(x, 'devices') for x in (hidden, labels, weights)]
  got = loss(on_all[0], put(table, *spec), *on_all[1:])
  _assert_close(got, loss(*inputs, weights))


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(labels=jnp.zeros((2, 12), int)), r'must be \(2, 13\)'),
        (
            dict(embedding=jnp.zeros((50, 7))),
            r'\(50, 7\).*last axes must agree',
        ),
        (dict(labels=jnp.zeros((2, 13))), 'must be integers, not float32'),
        (
            dict(label_smoothing=1.0),
            r'label_smoothing=1.0 must lie in \[0, 1\)',
        ),
        (dict(z_loss=-1.0), 'z_loss=-1.0 must not be negative'),
        (dict(chunk_size=0), 'chunk_size=0 must be positive'),
    ],
)
def test_bad_input(change, message):
  hidden, table, labels = _inputs()
  kwargs = dict(hidden=hidden, embedding=table, labels=labels) | change
  with pytest.raises(ValueError, match=message):
    g4.losses.softmax_cross_entropy(**kwargs)
