"""DPO without logits in memory."""

import dataclasses

import jax
import jax.numpy as jnp
from kauldron import kd
from kauldron import kontext

from gemma4_lora.losses import _cross_entropy
from gemma4_lora.losses import _head
from gemma4_lora.quant import _arrays


@dataclasses.dataclass(eq=True, frozen=True, kw_only=True)
class DpoLoss(kd.losses.Loss):
  r"""`gm.losses.DpoLoss`, without logits in memory.

  Direct preference optimisation (https://arxiv.org/abs/2305.18290): with `r` the
  log-probability of an answer, less what the reference gives it,

  $$ -(1 - s) \log\sigma(\tau (r_0 - r_1)) - s \log\sigma(-\tau (r_0 - r_1)) $$

  ```python
  model=g4.nn.LoRA(..., logits_in_training=False, with_reference=True),
  train_losses={
      "dpo": g4.losses.DpoLoss(
          head="preds.head",
          reference="preds.reference.head",
          tokens="batch.target",
          sequence_mask="batch.loss_mask",
      ),
  },
  ```

  Computed in float32.

  Attributes:
    head: Key of the `g4.losses.Head` that `g4.nn.LoRA` returns.
    reference: Key of that with LoRA off.
    tokens: Key of the labels, integers `[*B, 2, L]`: chosen, rejected. One that
      is no token, as `-100`, makes the loss NaN, unless the mask leaves it out.
    sequence_mask: Key of the mask of the answers, `[*B, 2, L]`.
    tau: Temperature: how strongly the policy is kept near the reference.
    label_smoothing: Share of the pairs that are assumed to be swapped.
    chunk_size: See `SoftmaxCrossEntropyWithIntLabels`.
  """

  head: kontext.Key = kontext.REQUIRED
  reference: kontext.Key = kontext.REQUIRED
  tokens: kontext.Key = kontext.REQUIRED
  sequence_mask: kontext.Key = kontext.REQUIRED
  tau: float = 0.1
  label_smoothing: float = 0.0
  chunk_size: int | None = None

  def get_values(
      self,
      *,
      head: _head.Head,
      reference: _head.Head,
      tokens: jax.Array,
      sequence_mask: jax.Array,
  ) -> jax.Array:
    """Returns the losses, f32 `[*B, 1]`."""
    margins = self.tau * _margins(
        head, reference, tokens, sequence_mask, chunk_size=self.chunk_size
    )
    losses = -(
        (1 - self.label_smoothing) * jax.nn.log_sigmoid(margins)
        + self.label_smoothing * jax.nn.log_sigmoid(-margins)
    )
    return losses[..., None]


@dataclasses.dataclass(eq=True, frozen=True, kw_only=True)
class DpoAccuracy(kd.metrics.Metric):
  """Share of pairs that the policy ranks better than the reference does.

  Its keys are those of `DpoLoss`. At the start, policy and reference are equal,
  and it is 0.
  """

  head: kontext.Key = kontext.REQUIRED
  reference: kontext.Key = kontext.REQUIRED
  tokens: kontext.Key = kontext.REQUIRED
  sequence_mask: kontext.Key = kontext.REQUIRED
  chunk_size: int | None = None

  State = kd.metrics.AverageState  # pyrefly: ignore[bad-override]

  def get_state(  # pyrefly: ignore[bad-override]: by names, as Kauldron's.
      self,
      *,
      head: _head.Head,
      reference: _head.Head,
      tokens: jax.Array,
      sequence_mask: jax.Array,
  ) -> kd.metrics.AverageState:
    """Returns the state of a batch."""
    margins = _margins(
        head, reference, tokens, sequence_mask, chunk_size=self.chunk_size
    )
    return self.State.from_values(values=(margins > 0).astype(jnp.float32))


def _margins(
    head: _head.Head,
    reference: _head.Head,
    tokens: jax.Array,
    mask: jax.Array,
    *,
    chunk_size: int | None,
) -> jax.Array:
  """Returns by how much the policy prefers the chosen, f32 `[*B]`.

  Raises:
    ValueError: Tokens or masks are not pairs.
  """
  wanted = head.hidden.shape[:-1]
  for name, value in (('tokens', tokens), ('sequence_mask', mask)):
    if value.shape != wanted or len(wanted) < 2 or wanted[-2] != 2:
      raise ValueError(
          f'{name}= must be [*B, 2, L], as g4.data.PreferenceTask makes them,'
          f' for hidden states of {head.hidden.shape}; they are {value.shape}.'
      )

  def log_probs(head):
    losses = _cross_entropy.softmax_cross_entropy(
        head.hidden,
        head.embedding,
        tokens,
        soft_cap=head.soft_cap,
        chunk_size=chunk_size,
    )
    num_tokens, _ = _arrays.shape_of(head.embedding)
    is_token = (tokens >= 0) & (tokens < num_tokens)
    losses = jnp.where(is_token, losses, jnp.nan)
    return -jnp.where(mask, losses, 0).sum(-1)

  rewards = log_probs(head) - log_probs(reference)
  return rewards[..., 0] - rewards[..., 1]
