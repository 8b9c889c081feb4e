"""Attention in blocks against attention written out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4_lora.nn.attention import _blockwise

_SHAPES = dict(batch=3, length=21, num_heads=4, num_kv_heads=2, width=8)


def _qkv(*, batch, length, num_heads, num_kv_heads, width):
  rng = np.random.default_rng(0)
  return [
      rng.standard_normal((batch, length, heads, width), np.float32)
      for heads in (num_heads, num_kv_heads, num_kv_heads, num_heads)
  ]


@functools.partial(jax.jit, static_argnames='soft_cap')
def _written_out(q, k, v, cotangent, may, *, soft_cap):
  """What is attended to, and the gradients of it."""

  def attend(q, k, v):
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    scores = jnp.einsum('btnh,bsnh->bnts', q, k)
    if soft_cap is not None:
      scores = soft_cap * jnp.tanh(scores / soft_cap)
    scores = jnp.where(may[:, None], scores, -jnp.inf)
    # A query that may attend to nothing gives zeros.
    empty = ~may.any(-1)[:, None, :, None]
    p = jax.nn.softmax(jnp.where(empty, 0, scores), axis=-1)
    return jnp.einsum('bnts,bsnh->btnh', jnp.where(empty, 0, p), v)

  output, pullback = jax.vjp(attend, q, k, v)
  return output, pullback(cotangent)


def _positions(valid):
  return np.maximum(np.cumsum(valid, axis=1) - 1, 0)


def _rows():
  """Padding at the end, at the start, in the middle; and an empty row."""
  valid = np.ones((3, 21), bool)
  valid[0, 15:] = False
  valid[1, :9] = False
  valid[1, 12] = False
  valid[2] = False
  return valid


def _compare(allowed, may, *, window, soft_cap, block):
  settings = _blockwise.Settings(window=window, soft_cap=soft_cap, block=block)
  *qkv, cotangent = _qkv(**_SHAPES)

  @jax.jit
  def run(*qkv):
    attend = functools.partial(_blockwise.attend, settings, allowed=allowed)
    output, pullback = jax.vjp(attend, *qkv)
    return output, pullback(cotangent)

  wanted = _written_out(*qkv, cotangent, may, soft_cap=soft_cap)
  jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=2e-5),
      run(*qkv),
      wanted,
  )


def _window(positions, window):
  if window is None:
    return np.True_
  return abs(positions[:, :, None] - positions[:, None]) < window


@pytest.mark.parametrize(
    ('window', 'soft_cap', 'block'),
    [(None, None, 4), (5, 2.0, 4), (5, None, 7), (None, 2.0, 7), (5, 2.0, 512)],
)
def test_causal_with_padding_anywhere(window, soft_cap, block):
  """Positions stand still at padding, so the window is not one of places."""
  valid = _rows()
  positions = _positions(valid)
  may = np.tri(21, dtype=bool) & valid[:, None] & _window(positions, window)
  _compare(
      _blockwise.Allowed(
          positions=jnp.asarray(positions), valid=jnp.asarray(valid)
      ),
      may,
      window=window,
      soft_cap=soft_cap,
      block=block,
  )


@pytest.mark.parametrize('window', [None, 3])
def test_packed_rows_and_bidirectional_spans(window):
  """A mask of the user's, and positions that restart."""
  segment = np.repeat([[0] * 8 + [1] * 10 + [2] * 3], 3, axis=0)
  positions = np.concatenate([np.arange(n) for n in (8, 10, 3)])[None]
  positions = np.repeat(positions, 3, axis=0)
  may = np.tri(21, dtype=bool) & (segment[:, :, None] == segment[:, None])
  may[1, 9:14, 9:14] = True
  _compare(
      _blockwise.Allowed(
          positions=jnp.asarray(positions), mask=jnp.asarray(may)
      ),
      may & _window(positions, window),
      window=window,
      soft_cap=None,
      block=4,
  )


def test_blocks_that_are_not_needed():
  """Neither behind the query, nor out of the window, nor padding."""
  valid = np.ones((1, 32), bool)
  valid[0, 24:] = False
  allowed = _blockwise.Allowed(
      positions=jnp.asarray(_positions(valid)), valid=jnp.asarray(valid)
  )
  settings = _blockwise.Settings(window=5, soft_cap=None, block=4)
  ranges = jax.jit(_blockwise._ranges, static_argnums=0)
  first, end = ranges(settings, allowed)
  assert first.tolist() == [0, 0, 1, 2, 3, 4, 4, 4]
  assert end.tolist() == [1, 2, 3, 4, 5, 6, 6, 6]


def test_no_array_of_queries_by_keys():
  q, k, v, _ = _qkv(batch=1, length=64, num_heads=2, num_kv_heads=1, width=8)
  allowed = _blockwise.Allowed(
      positions=jnp.arange(64)[None], valid=jnp.ones((1, 64), bool)
  )
  settings = _blockwise.Settings(window=None, soft_cap=None, block=16)
  text = str(
      jax.make_jaxpr(
          jax.grad(
              lambda q: _blockwise.attend(settings, q, k, v, allowed).sum()
          )
      )(q)
  )
  assert 'f32[1,1,2,16,16]' in text
  assert '64,64]' not in text
