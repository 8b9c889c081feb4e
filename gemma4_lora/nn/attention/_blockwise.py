"""Attention in blocks: no array of queries by keys, forward or backward.

Softmax is carried through blocks of keys as in FlashAttention
(https://arxiv.org/abs/2205.14135), and the backward pass recomputes each block
from queries, keys and the kept log-sum-exp. Blocks in which no query may attend
to a key (after the query, outside its window, padding) are not computed. Their
number is read from positions and mask at run time, so that rows with padding
anywhere, packed rows and other masks give correct results too.

Plain XLA: runs on CPU, GPU and TPU, under any sharding of the batch.
"""

import dataclasses
import functools
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

# What `checkpoint_name` calls the output and the log-sum-exp.
NAME = 'attention'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Window, soft cap and block size.

  Attributes:
    window: Distance of positions beyond which nothing is attended to, or None.
    soft_cap: Bound of the scores, or None.
    block: Number of queries and of keys in a block.
  """

  window: int | None
  soft_cap: float | None
  block: int = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class Allowed:
  """Who may attend to whom, beside the window.

  Either `mask`, or causally by place in the row to what is `valid`.

  Attributes:
    positions: i32 `[B, T]`
    valid: bool `[B, T]`, or None.
    segments: i32 `[B, T]`, growing, or None: beside `valid`, only to what has
      the same number.
    mask: bool `[B, T, T]`, or None.
  """

  positions: jax.Array
  valid: jax.Array | None = None
  segments: jax.Array | None = None
  mask: jax.Array | None = None


jax.tree_util.register_dataclass(
    Allowed,
    data_fields=['positions', 'valid', 'segments', 'mask'],
    meta_fields=[],
)


def attend(
    settings: Settings,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    allowed: Allowed,
) -> jax.Array:
  """Returns what each query attends to.

  Scores and softmax are at least float32. A query that may attend to nothing
  gets zeros.

  Args:
    settings: Window, soft-cap, blocks.
    q: `[B, T, N, H]`
    k: `[B, T, K, H]`; each of its heads serves `N / K` of the queries'.
    v: `[B, T, K, H]`
    allowed: Who may attend to whom.

  Returns:
    `[B, T, N, H]`
  """
  length = q.shape[1]
  settings = dataclasses.replace(settings, block=min(settings.block, length))
  missing = -length % settings.block
  if missing:
    q, k, v = (_pad(x, missing, axes=(1,)) for x in (q, k, v))
    allowed = _pad_allowed(allowed, missing)
  return _attend(settings, q, k, v, allowed)[:, :length]


def _pad_allowed(allowed: Allowed, missing: int) -> Allowed:
  """Returns the same for a longer row; no query attends to the added keys."""
  positions = _pad(allowed.positions, missing, axes=(1,), mode='edge')
  if allowed.mask is not None:
    mask = _pad(allowed.mask, missing, axes=(1, 2))
    return Allowed(positions=positions, mask=mask)
  assert allowed.valid is not None
  valid = _pad(allowed.valid, missing, axes=(1,))
  segments = allowed.segments
  if segments is not None:
    segments = _pad(segments, missing, axes=(1,), mode='edge')
  return Allowed(positions=positions, valid=valid, segments=segments)


def _pad(
    x: jax.Array, missing: int, *, axes: tuple[int, ...], mode: str = 'constant'
) -> jax.Array:
  widths = [(0, missing if axis in axes else 0) for axis in range(x.ndim)]
  return jnp.pad(x, widths, mode=mode)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(settings, q, k, v, allowed):
  return _forward(settings, q, k, v, allowed)[0]


def _with_residuals(settings, q, k, v, allowed):
  output, log_sum = _forward(settings, q, k, v, allowed)
  output = checkpoint_name(output, NAME)
  log_sum = checkpoint_name(log_sum, NAME)
  return output, (q, k, v, allowed, output, log_sum)


def _forward(
    settings: Settings,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    allowed: Allowed,
) -> tuple[jax.Array, jax.Array]:
  """Returns the output, and f32 `[B, K, G, T]`, the log-sum-exp of the scores."""
  block = settings.block
  batch, length, num_heads, width = q.shape
  heads = (k.shape[2], num_heads // k.shape[2])
  dtype = _sum_dtype(q)
  first, last = _ranges(settings, allowed)

  def of_queries(i, outputs):
    q_block = _heads(_cut(q, i, block), heads)

    def with_keys(j, carry):
      largest, total, sums = carry
      scores, _ = _scores(settings, q_block, _cut(k, j, block))
      scores = jnp.where(_may_attend(settings, allowed, i, j), scores, -jnp.inf)
      bound = jnp.maximum(largest, scores.max(-1))
      # While a query has met no key, exp(-inf - 0) = 0 is what we want.
      shift = jnp.where(jnp.isneginf(bound), 0, bound)
      weights = jnp.exp(scores - shift[..., None])
      shrink = jnp.exp(largest - shift)
      gain = _values('bkgts,bskh->bkgth', weights, _cut(v, j, block))
      return (
          bound,
          total * shrink + weights.sum(-1),
          sums * shrink[..., None] + gain,
      )

    per_query = jnp.zeros((batch, *heads, block), dtype)
    largest, total, sums = jax.lax.fori_loop(
        first[i],
        last[i],
        with_keys,
        (
            per_query - jnp.inf,
            per_query,
            jnp.zeros((*per_query.shape, width), dtype),
        ),
    )
    is_empty = total == 0
    output = sums / jnp.where(is_empty, 1, total)[..., None]
    log_sum = jnp.where(is_empty, jnp.inf, largest + jnp.log(total))
    return (
        _put(outputs[0], _rows(output).astype(q.dtype), i * block, axis=1),
        _put(outputs[1], log_sum, i * block, axis=3),
    )

  empty = (
      jnp.zeros(q.shape, q.dtype),
      jnp.zeros((batch, *heads, length), dtype),
  )
  return jax.lax.fori_loop(0, length // block, of_queries, empty)


def _backward(settings, kept, cotangent):
  """Returns the gradients to q, k and v: each block of scores is made once."""
  q, k, v, allowed, output, log_sum = kept
  block = settings.block
  batch, length, num_heads, width = q.shape
  heads = (k.shape[2], num_heads // k.shape[2])
  dtype = _sum_dtype(q)
  first, last = _ranges(settings, allowed)
  # The part of softmax's gradient that all keys of a query share.
  shared = jnp.einsum(
      'btnh,btnh->btn', output, cotangent, preferred_element_type=dtype
  )

  def of_queries(i, grads):
    q_block = _heads(_cut(q, i, block), heads)
    given = _heads(_cut(cotangent, i, block), heads)
    mean = _heads(_cut(shared, i, block)[..., None], heads)[..., 0]
    log_sum_block = jax.lax.dynamic_slice_in_dim(log_sum, i * block, block, 3)

    def with_keys(j, carry):
      to_q, to_k, to_v = carry
      k_block, v_block = _cut(k, j, block), _cut(v, j, block)
      scores, slope = _scores(settings, q_block, k_block)
      may = _may_attend(settings, allowed, i, j)
      # inf - inf does not arise: the log-sum of an empty row is +inf.
      p = jnp.where(may, jnp.exp(scores - log_sum_block[..., None]), 0)
      to_p = _values('bkgth,bskh->bkgts', given, v_block)
      to_scores = p * (to_p - mean[..., None]) * slope
      to_q += _values('bkgts,bskh->bkgth', to_scores, k_block)
      to_k = _add(to_k, _values('bkgts,bkgth->bskh', to_scores, q_block), j)
      to_v = _add(to_v, _values('bkgts,bkgth->bskh', p, given), j)
      return to_q, to_k, to_v

    nothing = jnp.zeros((batch, *heads, block, width), dtype)
    to_q, to_k, to_v = jax.lax.fori_loop(
        first[i], last[i], with_keys, (nothing, *grads[1:])
    )
    to_q = _rows(to_q).astype(q.dtype)
    return _put(grads[0], to_q, i * block, axis=1), to_k, to_v

  to_q, to_k, to_v = jax.lax.fori_loop(
      0,
      length // block,
      of_queries,
      (
          jnp.zeros(q.shape, q.dtype),
          jnp.zeros(k.shape, dtype),
          jnp.zeros(v.shape, dtype),
      ),
  )
  return to_q, to_k.astype(k.dtype), to_v.astype(v.dtype), None


_attend.defvjp(_with_residuals, _backward)


def _scores(
    settings: Settings, q: jax.Array, k: jax.Array
) -> tuple[jax.Array, jax.Array | float]:
  """Returns f32 `[B, K, G, t, s]`, and the soft-cap's derivative."""
  scores = jnp.einsum(
      'bkgth,bskh->bkgts', q, k, preferred_element_type=_sum_dtype(q)
  )
  if settings.soft_cap is None:
    return scores, 1.0
  bounded = jnp.tanh(scores / settings.soft_cap)
  return settings.soft_cap * bounded, 1 - bounded**2


def _values(eqn: str, x: jax.Array, y: jax.Array) -> jax.Array:
  """An einsum in y's dtype, summed in `_sum_dtype`."""
  return jnp.einsum(
      eqn, x.astype(y.dtype), y, preferred_element_type=_sum_dtype(y)
  )


def _sum_dtype(x: jax.Array) -> jnp.dtype:
  """Dtype of scores and sums: float32, or wider."""
  return jnp.promote_types(x.dtype, jnp.float32)


def _may_attend(
    settings: Settings, allowed: Allowed, i: Any, j: Any
) -> jax.Array:
  """Returns bool `[B, 1, 1, t, s]` for a block of queries and one of keys."""
  block = settings.block
  if allowed.mask is not None:
    rows = jax.lax.dynamic_slice_in_dim(allowed.mask, i * block, block, 1)
    may = jax.lax.dynamic_slice_in_dim(rows, j * block, block, 2)
  else:
    assert allowed.valid is not None
    place = jnp.arange(block)
    causal = (i * block + place)[:, None] >= j * block + place
    may = causal & _cut(allowed.valid, j, block)[:, None]
    if allowed.segments is not None:
      q_of = _cut(allowed.segments, i, block)[:, :, None]
      may &= q_of == _cut(allowed.segments, j, block)[:, None]
  if settings.window is not None:
    q_at = _cut(allowed.positions, i, block)[:, :, None]
    k_at = _cut(allowed.positions, j, block)[:, None]
    may &= jnp.abs(q_at - k_at) < settings.window
  return may[:, None, None]


def _ranges(
    settings: Settings, allowed: Allowed
) -> tuple[jax.Array, jax.Array]:
  """Returns which blocks of keys each block of queries needs: first, end.

  Blocks that nothing attends to are all left out before the first and after the
  last that something does.
  """
  block = settings.block
  batch, length = allowed.positions.shape
  number = length // block
  if allowed.mask is not None:
    blocks = allowed.mask.reshape(batch, number, block, number, block)
    needed = blocks.any((2, 4))
  else:
    assert allowed.valid is not None
    valid = allowed.valid.reshape(batch, number, block).any(-1)
    causal = jnp.tri(number, dtype=bool)
    needed = causal & valid[:, None]
    if allowed.segments is not None:
      of = allowed.segments.reshape(batch, number, block)
      # Not keys whose conversations all ended before the queries' first began.
      needed &= of[:, :, 0][:, :, None] <= of[:, :, -1][:, None]
  if settings.window is not None:
    at = allowed.positions.reshape(batch, number, block)
    low, high = at.min(-1), at.max(-1)
    ahead = low[:, :, None] - high[:, None]
    behind = low[:, None] - high[:, :, None]
    needed &= jnp.maximum(ahead, behind) < settings.window
  needed = needed.any(0)
  first = jnp.argmax(needed, axis=1)
  last = number - jnp.argmax(needed[:, ::-1], axis=1)
  return first, jnp.where(needed.any(1), last, first)


def _cut(x: jax.Array, i: Any, block: int) -> jax.Array:
  return jax.lax.dynamic_slice_in_dim(x, i * block, block, axis=1)


def _put(whole: jax.Array, part: jax.Array, at: Any, *, axis: int) -> jax.Array:
  return jax.lax.dynamic_update_slice_in_dim(whole, part, at, axis)


def _add(whole: jax.Array, part: jax.Array, j: Any) -> jax.Array:
  block = part.shape[1]
  return _put(whole, _cut(whole, j, block) + part, j * block, axis=1)


def _heads(x: jax.Array, heads: tuple[int, int]) -> jax.Array:
  """`[B, t, N, H]` to `[B, K, G, t, H]`."""
  x = x.reshape(*x.shape[:2], *heads, x.shape[-1])
  return x.transpose(0, 2, 3, 1, 4)


def _rows(x: jax.Array) -> jax.Array:
  """`[B, K, G, t, H]` to `[B, t, N, H]`."""
  x = x.transpose(0, 3, 1, 2, 4)
  return x.reshape(*x.shape[:2], -1, x.shape[-1])
