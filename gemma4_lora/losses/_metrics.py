"""Metrics that need logits, from hidden states."""

import abc
import dataclasses
import math

import flax
import jax
import jax.numpy as jnp
from kauldron import kd
from kauldron import kontext

from gemma4_lora.losses import _cross_entropy
from gemma4_lora.losses import _head
from gemma4_lora.losses import _loss
from gemma4_lora.losses import _tiles


@dataclasses.dataclass(eq=True, frozen=True, kw_only=True)
class _OfTokens(kd.metrics.Metric):
  """A mean over tokens.

  Attributes:
    head: Key of the `g4.losses.Head` that `g4.nn.LoRA` returns.
    labels: Key of the labels, integers `[*B, L, 1]`.
    mask: Key of the weights, `[*B, L, 1]`, or None.
    chunk_size: See `SoftmaxCrossEntropyWithIntLabels`.
  """

  head: kontext.Key = kontext.REQUIRED
  labels: kontext.Key = kontext.REQUIRED
  mask: kontext.Key | None = None
  chunk_size: int | None = None

  State = kd.metrics.AverageState  # pyrefly: ignore[bad-override]

  def get_state(  # pyrefly: ignore[bad-override]: by names, as Kauldron's.
      self,
      *,
      head: _head.Head,
      labels: jax.Array,
      mask: jax.Array | None = None,
  ) -> kd.metrics.AverageState:
    """Returns the state of a batch.

    Args:
      head: Hidden states `[*B, L, D]`, and what makes logits of them.
      labels: Integers `[*B, L, 1]`.
      mask: Weights `[*B, L, 1]`.

    Raises:
      ValueError: Labels of another shape.
    """
    values = self._values(head, _loss.squeeze_labels(labels, head))
    return self.State.from_values(values=values[..., None], mask=mask)

  @abc.abstractmethod
  def _values(self, head: _head.Head, labels: jax.Array) -> jax.Array:
    """Returns f32 `[*B, L]`, for labels `[*B, L]`."""


class Accuracy(_OfTokens):
  """`kd.metrics.Accuracy`, without logits in memory.

  Its keys are `head`, `labels` and `mask`, those of
  `SoftmaxCrossEntropyWithIntLabels`.
  """

  def _values(self, head: _head.Head, labels: jax.Array) -> jax.Array:
    """Whether the label is the most likely token."""
    return _is_largest(head, labels, self.chunk_size).astype(jnp.float32)


@flax.struct.dataclass
class _PerplexityState(kd.metrics.AverageState):
  """The mean cross-entropy of all batches so far."""

  def compute(self) -> jax.Array:
    """Returns the perplexity over all batches, not the mean of theirs."""
    return jnp.exp(super().compute())


class Perplexity(_OfTokens):
  """The exponential of the mean cross-entropy of the tokens that count.

  Its keys are `head`, `labels` and `mask`, those of
  `SoftmaxCrossEntropyWithIntLabels`.
  """

  State = _PerplexityState

  def _values(self, head: _head.Head, labels: jax.Array) -> jax.Array:
    """Returns the cross-entropies."""
    return _cross_entropy.softmax_cross_entropy(
        head.hidden,
        head.embedding,
        labels,
        soft_cap=head.soft_cap,
        chunk_size=self.chunk_size,
    )


def _is_largest(
    head: _head.Head, labels: jax.Array, chunk_size: int | None
) -> jax.Array:
  """Whether the label is the argmax of the logits, bool of `labels`' shape.

  As with `argmax`, the first of equal logits wins.
  """
  *batch, length = labels.shape
  flat = (math.prod(batch), length)

  def of_chunk(hidden, labels):
    label = jnp.full(labels.shape, -jnp.inf)
    carry = {'label': label, 'before': label, 'after': label}

    def body(carry, tile):
      def largest(where):
        where &= tile.is_new
        return jnp.where(where, tile.logits, -jnp.inf).max(-1)

      of_tile = {
          'label': largest(tile.is_label),
          'before': largest(tile.column < labels[..., None]),
          'after': largest(tile.column > labels[..., None]),
      }
      return jax.tree.map(jnp.maximum, carry, of_tile)

    carry = _tiles.over_vocab(
        body,
        carry,
        hidden=hidden,
        table=head.embedding,
        labels=labels,
        soft_cap=head.soft_cap,
        vocab_tile=_tiles.VOCAB,
    )
    return (carry['label'] > carry['before']) & (
        carry['label'] >= carry['after']
    )

  correct = _tiles.over_tokens(
      of_chunk,
      [head.hidden.reshape(*flat, -1), labels.reshape(flat).astype(jnp.int32)],
      chunk=_cross_entropy.chunk_length(flat[0], chunk_size),
  )
  return correct.reshape(labels.shape)
