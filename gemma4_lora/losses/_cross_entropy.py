"""Cross-entropy over a large vocabulary, from hidden states."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from kauldron import kd

from gemma4_lora.losses import _tiles
from gemma4_lora.quant import _arrays


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Settings of the loss, and the sizes of its pieces."""

  soft_cap: float | None
  label_smoothing: float
  z_loss: float
  chunk: int
  vocab_tile: int


def softmax_cross_entropy(
    hidden: jax.Array,
    embedding: Any,
    labels: jax.Array,
    *,
    soft_cap: float | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    chunk_size: int | None = None,
    vocab_tile: int = _tiles.VOCAB,
) -> jax.Array:
  """Returns the cross-entropy of each token, without making the logits.

  Equal to `optax.softmax_cross_entropy_with_integer_labels` on `soft_cap *
  tanh(hidden @ embedding.T / soft_cap)`, in float32 whatever the inputs have.

  If the loss is differentiated, its gradient to `hidden` is computed together
  with it and kept, in `hidden`'s dtype. The backward pass then recomputes
  nothing. The gradient to `embedding` is computed in the backward pass, and
  costs nothing if it is not used: LoRA leaves the table frozen.

  Args:
    hidden: `[*B, L, D]`
    embedding: `[V, D]`; or quantised by row, and then it has no gradient.
    labels: Integers, `[*B, L]`, in `[0, V)`. Labels outside get a finite loss
      without meaning: mask them.
    soft_cap: Bound of the logits: 30 for Gemma 4. None: logits as they are.
    label_smoothing: Share of the target that is spread over all tokens.
    z_loss: Weight of `log(Z)^2` (https://arxiv.org/abs/2204.02311, section 5).
    chunk_size: Tokens of a device whose logits are computed at once. Default:
      2048, over all devices of Kauldron's mesh if they divide the batch.
    vocab_tile: Entries of the vocabulary that are computed at once.

  Returns:
    f32 `[*B, L]`, neither masked nor averaged.

  Raises:
    ValueError: Shapes that do not fit each other, or a setting out of range.
  """
  _check(hidden, embedding, labels)
  if not 0 <= label_smoothing < 1:
    raise ValueError(f'label_smoothing={label_smoothing} must lie in [0, 1).')
  if z_loss < 0:
    raise ValueError(f'z_loss={z_loss} must not be negative.')
  *batch, length = labels.shape
  settings = Settings(
      soft_cap=soft_cap,
      label_smoothing=label_smoothing,
      z_loss=z_loss,
      chunk=chunk_length(math.prod(batch), chunk_size),
      vocab_tile=vocab_tile,
  )
  flat = (math.prod(batch), length)
  losses = _per_token(
      settings,
      hidden.reshape(*flat, hidden.shape[-1]),
      embedding,
      labels.reshape(flat).astype(jnp.int32),
  )
  return losses.reshape(labels.shape)


def chunk_length(batch_size: int, chunk_size: int | None) -> int:
  """Returns how many tokens of each sequence to take at a time.

  Args:
    batch_size: Sequences on all devices.
    chunk_size: Tokens on each, or None for the default.

  Raises:
    ValueError: A chunk that is not positive.
  """
  chunk_size = _tiles.TOKENS if chunk_size is None else chunk_size
  if chunk_size < 1:
    raise ValueError(f'chunk_size={chunk_size} must be positive.')
  num_devices = kd.sharding.DEVICES_MESH.size
  if batch_size % num_devices:  # Then Kauldron does not shard it.
    num_devices = 1
  return max(1, chunk_size * num_devices // batch_size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _per_token(
    settings: Settings, hidden: jax.Array, table: Any, labels: jax.Array
) -> jax.Array:
  """Returns the losses, f32 `[B, L]`."""
  body = functools.partial(_losses, settings, table, with_grad=False)
  return _tiles.over_tokens(body, [hidden, labels], chunk=settings.chunk)[
      'loss'
  ]


def _forward(settings, hidden, table, labels):
  body = functools.partial(_losses, settings, table, with_grad=True)
  out = _tiles.over_tokens(body, [hidden, labels], chunk=settings.chunk)
  return out.pop('loss'), (out, hidden, table, labels)


def _backward(settings, kept, cotangent):
  made, hidden, table, labels = kept
  scaled = cotangent[..., None] * made['grad'].astype(jnp.float32)
  to_table = None
  if not _arrays.is_quantized(table):
    z = made['shift'], made['total']
    to_table = _table_grad(settings, hidden, table, labels, z, cotangent)
  return scaled.astype(hidden.dtype), to_table, None


_per_token.defvjp(_forward, _backward)


def _losses(
    settings: Settings,
    table: Any,
    hidden: jax.Array,
    labels: jax.Array,
    *,
    with_grad: bool,
) -> dict[str, jax.Array]:
  """Returns the losses of a chunk, and their gradients to its hidden states.

  The label's own entry is kept out of the sums. Otherwise, for a token that the
  model predicts with certainty, `p - 1` would be a small difference of rounded
  numbers.

  Args:
    settings: Settings of the loss.
    table: `[V, D]`
    hidden: `[B, C, D]`
    labels: i32 `[B, C]`
    with_grad: Whether to form the gradient too.

  Returns:
    `loss`, f32 `[B, C]`; `shift` and `total`, the same, with `Z = total *
    exp(shift)`; and `grad`, `[B, C, D]`.
  """
  num_tokens, _ = _arrays.shape_of(table)
  smoothing = settings.label_smoothing
  per_token = jnp.zeros(labels.shape, jnp.float32)
  vector = jnp.zeros(hidden.shape, jnp.float32)
  sums: dict[str, Any] = {
      # A bound of the logits except the label's, and sum(exp(logit - bound)).
      'bound': per_token + (-jnp.inf if settings.soft_cap is None else 0),
      'others': per_token,
      'label': per_token,
      'slope': per_token,
  }
  if settings.soft_cap is not None:
    sums['bound'] = per_token + settings.soft_cap
  if smoothing:
    sums['all'] = per_token
  if with_grad:
    sums['push'] = vector
    if smoothing:
      sums['spread'] = vector

  def body(sums, tile):
    sums = dict(sums)
    is_other = ~tile.is_label & tile.is_new
    if settings.soft_cap is None:  # Otherwise no logit exceeds the bound.
      largest = jnp.where(is_other, tile.logits, -jnp.inf).max(-1)
      bound = jnp.maximum(sums['bound'], largest)
      shrink = jnp.where(
          jnp.isneginf(bound), 1.0, jnp.exp(sums['bound'] - bound)
      )
      sums['bound'] = bound
      sums['others'] *= shrink
      if with_grad:
        sums['push'] *= shrink[..., None]
    weight = jnp.exp(tile.logits - sums['bound'][..., None])
    weight = jnp.where(is_other, weight, 0)
    sums['others'] += weight.sum(-1)
    sums['label'] += jnp.where(tile.is_label, tile.logits, 0).sum(-1)
    sums['slope'] += jnp.where(tile.is_label, tile.slope, 0).sum(-1)
    if smoothing:
      sums['all'] += jnp.where(tile.is_new, tile.logits, 0).sum(-1)
    if with_grad:
      push = (weight * tile.slope).astype(tile.table.dtype)
      sums['push'] += _tiles.dot(push, tile.table, contract=(-1, 0))
      if smoothing:
        spread = jnp.where(is_other, tile.slope, 0).astype(tile.table.dtype)
        sums['spread'] += _tiles.dot(spread, tile.table, contract=(-1, 0))
    return sums

  sums = _tiles.over_vocab(
      body,
      sums,
      hidden=hidden,
      table=table,
      labels=labels,
      soft_cap=settings.soft_cap,
      vocab_tile=settings.vocab_tile,
  )
  # log(Z) - label, without their difference, which loses digits for large
  # logits. So does exp(logit - log(Z)): therefore Z is kept in two parts.
  log_others = (sums['bound'] - sums['label']) + jnp.log(sums['others'])
  outputs = {'loss': jax.nn.softplus(log_others)}
  outputs['shift'] = shift = jnp.maximum(sums['bound'], sums['label'])
  shrink = jnp.exp(sums['bound'] - shift)
  of_label = jnp.exp(sums['label'] - shift)
  outputs['total'] = total = sums['others'] * shrink + of_label
  log_z = shift + jnp.log(total)
  if smoothing:
    outputs['loss'] += smoothing * (sums['label'] - sums['all'] / num_tokens)
  if settings.z_loss:
    outputs['loss'] += settings.z_loss * log_z**2
  if not with_grad:
    return outputs

  z_term = 2 * settings.z_loss * log_z
  p_label = of_label / total
  p_others = sums['others'] * shrink / total
  grad = (shrink / total)[..., None] * sums['push']
  grad *= (1 + z_term)[..., None]
  if smoothing:
    grad -= smoothing / num_tokens * sums['spread']
  on_label = -p_others + z_term * p_label + smoothing * (1 - 1 / num_tokens)
  rows = _arrays.take(table, jnp.clip(labels, 0, num_tokens - 1), hidden.dtype)
  rows = rows.astype(jnp.float32)
  grad += (on_label * sums['slope'])[..., None] * rows
  outputs['grad'] = grad.astype(hidden.dtype)
  return outputs


def _table_grad(
    settings: Settings,
    hidden: jax.Array,
    table: jax.Array,
    labels: jax.Array,
    z: tuple[jax.Array, jax.Array],
    cotangent: jax.Array,
) -> jax.Array:
  """Returns the gradient to the table, `[V, D]`, a tile of rows at a time.

  Args:
    settings: Settings of the loss.
    hidden: `[B, L, D]`
    table: `[V, D]`
    labels: i32 `[B, L]`
    z: `shift` and `total` of `_losses`.
    cotangent: f32 `[B, L]`, of the losses.
  """
  num_tokens = table.shape[0]
  smoothing = settings.label_smoothing
  shift, total = z
  log_z = shift + jnp.log(total)
  gain = (1 + 2 * settings.z_loss * log_z) / total

  def of_chunk(to_table, hidden, labels, shift, gain, cotangent):
    def body(to_table, tile):
      push = jnp.exp(tile.logits - shift[..., None]) * gain[..., None]
      push -= (
          jnp.where(tile.is_label, 1 - smoothing, 0) + smoothing / num_tokens
      )
      push *= tile.slope * cotangent[..., None]
      push = jnp.where(tile.is_new, push, 0).astype(hidden.dtype)
      rows = jnp.einsum(
          'bcv,bcd->vd', push, hidden, preferred_element_type=jnp.float32
      )
      start = tile.column[0]
      rows += jax.lax.dynamic_slice_in_dim(to_table, start, rows.shape[0])
      return jax.lax.dynamic_update_slice_in_dim(to_table, rows, start, 0)

    return _tiles.over_vocab(
        body,
        to_table,
        hidden=hidden,
        table=table,
        labels=labels,
        soft_cap=settings.soft_cap,
        vocab_tile=settings.vocab_tile,
    )

  to_table = _tiles.carried_over_tokens(
      of_chunk,
      jnp.zeros(table.shape, jnp.float32),
      # Tokens that fill the last chunk have a cotangent of zero.
      [hidden, labels, shift, gain, cotangent],
      chunk=settings.chunk,
  )
  return to_table.astype(table.dtype)


def _check(hidden: jax.Array, embedding: Any, labels: jax.Array) -> None:
  if hidden.shape[:-1] != labels.shape:
    raise ValueError(
        f'hidden is {hidden.shape}, so labels must be {hidden.shape[:-1]}:'
        f' they are {labels.shape}.'
    )
  shape = _arrays.shape_of(embedding)
  if shape[1:] != hidden.shape[-1:]:
    raise ValueError(
        f'embedding is {shape}, but hidden is {hidden.shape}: the last'
        ' axes must agree.'
    )
  if not jnp.issubdtype(labels.dtype, jnp.integer):
    raise ValueError(f'labels must be integers, not {labels.dtype}.')
