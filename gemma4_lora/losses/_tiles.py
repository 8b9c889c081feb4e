"""Reduces over the logits of a vocabulary, a tile of them at a time.

The only place that makes logits: `[B, C, tile]` of `[B, L, V]`, for C tokens of
each sequence. The cost: the table is read once per chunk of tokens, and the
accumulators once per tile.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from gemma4_lora.quant import _arrays

# A tile of logits in float32 is 64 MiB: the table is then read once for 2048
# tokens, and the sums over the vocabulary once for 8192 of its entries.
TOKENS = 2048
VOCAB = 8192


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tile:
  """Logits of some tokens, for a part of the vocabulary.

  Attributes:
    table: `[tile, D]`, those rows of the embedding.
    logits: f32 `[B, C, tile]`, after the soft-cap.
    slope: f32 `[B, C, tile]`, the soft-cap's derivative; or 1.
    is_label: bool `[B, C, tile]`
    column: i32 `[tile]`, which entries of the vocabulary these are.
    is_new: bool `[tile]`. False for entries that the previous tile has, too: if
      the vocabulary size is not a multiple, the last tile overlaps it.
  """

  table: jax.Array
  logits: jax.Array
  slope: jax.Array
  is_label: jax.Array
  column: jax.Array
  is_new: jax.Array


def over_vocab(
    body: Callable[[Any, Tile], Any],
    init: Any,
    *,
    hidden: jax.Array,
    table: Any,
    labels: jax.Array,
    soft_cap: float | None,
    vocab_tile: int,
) -> Any:
  """Carries `body` through the tiles of the vocabulary.

  Args:
    body: `(carry, tile) -> carry`.
    init: First carry.
    hidden: `[B, C, D]`
    table: `[V, D]`, quantised by row or not.
    labels: i32 `[B, C]`
    soft_cap: Soft cap of the logits, or None.
    vocab_tile: Number of entries in a tile.

  Returns:
    The last carry.
  """
  num_tokens, _ = _arrays.shape_of(table)
  size = min(vocab_tile, num_tokens)

  def step(i, carry):
    start = jnp.minimum(i * size, num_tokens - size)
    rows = _arrays.slice_rows(table, start, size, hidden.dtype)
    logits = dot(hidden, rows, contract=(-1, -1))
    slope = jnp.ones((), jnp.float32)
    if soft_cap is not None:
      bounded = jnp.tanh(logits / soft_cap)
      logits, slope = soft_cap * bounded, 1 - bounded**2
    column = start + jnp.arange(size, dtype=jnp.int32)
    is_new = column >= i * size
    tile = Tile(
        table=rows,
        logits=logits,
        slope=slope,
        is_label=(column == labels[..., None]) & is_new,
        column=column,
        is_new=is_new,
    )
    return body(carry, tile)

  return jax.lax.fori_loop(0, -(-num_tokens // size), step, init)


def over_tokens(
    body: Callable[..., Any],
    inputs: Sequence[jax.Array],
    *,
    chunk: int,
) -> Any:
  """Applies `body` to chunks of each sequence, and joins what it gives.

  Chunks are cut from the sequences. The batch, which is sharded over devices,
  is not cut.

  Args:
    body: Takes `[B, C, ...]` each, returns a tree of `[B, C, ...]`.
    inputs: `[B, L, ...]` each.
    chunk: C. The last chunk is filled with zeros where it does not divide L.

  Returns:
    A tree of `[B, L, ...]`.
  """
  length = inputs[0].shape[1]
  if chunk >= length:
    return body(*inputs)
  empty = jax.tree.map(
      lambda x: jnp.zeros(
          (x.shape[0], _num_chunks(inputs, chunk) * chunk, *x.shape[2:]),
          x.dtype,
      ),
      jax.eval_shape(body, *(x[:, :chunk] for x in inputs)),
  )

  def step(outputs, i, *parts):
    return jax.tree.map(
        lambda whole, part: jax.lax.dynamic_update_slice_in_dim(
            whole, part, i * chunk, axis=1
        ),
        outputs,
        body(*parts),
    )

  outputs = _carry(step, empty, inputs, chunk=chunk)
  return jax.tree.map(lambda x: x[:, :length], outputs)


def carried_over_tokens(
    body: Callable[..., Any],
    init: Any,
    inputs: Sequence[jax.Array],
    *,
    chunk: int,
) -> Any:
  """Carries `body` through chunks of each sequence.

  Args:
    body: Takes a carry and `[B, C, ...]` each, returns a carry.
    init: First carry.
    inputs: `[B, L, ...]` each.
    chunk: C, as in `over_tokens`.

  Returns:
    The last carry.
  """
  if chunk >= inputs[0].shape[1]:
    return body(init, *inputs)
  return _carry(
      lambda carry, _, *parts: body(carry, *parts), init, inputs, chunk=chunk
  )


def _carry(
    step: Callable[..., Any],
    init: Any,
    inputs: Sequence[jax.Array],
    *,
    chunk: int,
) -> Any:
  """Carries `step(carry, i, *parts)` through the chunks."""
  num_chunks = _num_chunks(inputs, chunk)
  padded = [_pad(x, num_chunks * chunk) for x in inputs]

  def at(i, carry):
    parts = (
        jax.lax.dynamic_slice_in_dim(x, i * chunk, chunk, axis=1)
        for x in padded
    )
    return step(carry, i, *parts)

  return jax.lax.fori_loop(0, num_chunks, at, init)


def _num_chunks(inputs: Sequence[jax.Array], chunk: int) -> int:
  return -(-inputs[0].shape[1] // chunk)


def dot(x: jax.Array, y: jax.Array, *, contract: tuple[int, int]) -> jax.Array:
  """Product in float32, without a transposed copy of either.

  Args:
    x: `[*B, D]` or `[*B, V]`
    y: `[V, D]`
    contract: The axis of each that is summed over.
  """
  axes = ((contract[0] % x.ndim,), (contract[1] % y.ndim,))
  return jax.lax.dot_general(
      x, y, (axes, ((), ())), preferred_element_type=jnp.float32
  )


def _pad(x: jax.Array, length: int) -> jax.Array:
  widths = [(0, 0)] * x.ndim
  widths[1] = (0, length - x.shape[1])
  return jnp.pad(x, widths)
