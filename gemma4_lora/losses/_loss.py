"""The cross-entropy as a Kauldron loss."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from kauldron import kd
from kauldron import kontext

from gemma4_lora.losses import _cross_entropy
from gemma4_lora.losses import _head
from gemma4_lora.quant import _arrays


@dataclasses.dataclass(eq=True, frozen=True, kw_only=True)
class SoftmaxCrossEntropyWithIntLabels(kd.losses.Loss):
  """`kd.losses.SoftmaxCrossEntropyWithIntLabels`, without logits in memory.

  ```python
  model=g4.nn.LoRA(..., logits_in_training=False),
  train_losses={
      "xentropy": g4.losses.SoftmaxCrossEntropyWithIntLabels(
          head="preds.head", labels="batch.target", mask="batch.loss_mask",
      ),
  },
  ```

  Computed in float32 (Kauldron's is in the logits' bfloat16), in training and
  in evaluators alike.

  Attributes:
    head: Key of the `g4.losses.Head` that `g4.nn.LoRA` returns.
    labels: Key of the labels, integers `[*B, L, 1]`. Where the mask is not zero,
      they are tokens of the vocabulary; if not, as for `-100`, the loss is NaN,
      and `g4.train.TrainStep` says why.
    label_smoothing: Part of the target that is spread over all tokens.
    z_loss: Weight of `log(Z)^2` (https://arxiv.org/abs/2204.02311, section 5).
    chunk_size: Tokens of a device whose logits are computed at once. Default:
      2048.
  """

  head: kontext.Key = kontext.REQUIRED
  labels: kontext.Key = kontext.REQUIRED
  label_smoothing: float = 0.0
  z_loss: float = 0.0
  chunk_size: int | None = None

  def get_values(self, head: _head.Head, labels: jax.Array) -> jax.Array:
    """Returns the losses.

    Args:
      head: Hidden states `[*B, L, D]`, embedding and soft cap.
      labels: Integers `[*B, L, 1]`.

    Returns:
      f32 `[*B, L, 1]`
    """
    losses = _cross_entropy.softmax_cross_entropy(
        head.hidden,
        head.embedding,
        squeeze_labels(labels, head),
        soft_cap=head.soft_cap,
        label_smoothing=self.label_smoothing,
        z_loss=self.z_loss,
        chunk_size=self.chunk_size,
    )
    return losses[..., None]

  def get_state(  # pyrefly: ignore[bad-override]: by names, as Kauldron's.
      self,
      *,
      head: _head.Head,
      labels: jax.Array,
      mask: jax.Array | None = None,
      step: Any = None,
  ) -> kd.losses.Loss.State:
    """Returns the state of a batch.

    Args:
      head: Hidden states `[*B, L, D]`, embedding and soft cap.
      labels: Integers `[*B, L, 1]`.
      mask: Weights `[*B, L, 1]`.
      step: Step of the run, for a scheduled weight.
    """
    state = super().get_state(head=head, labels=labels, mask=mask, step=step)
    num_tokens, _ = _arrays.shape_of(head.embedding)
    is_outside = (labels < 0) | (labels >= num_tokens)
    if mask is not None:
      is_outside &= jnp.broadcast_to(mask != 0, labels.shape)
    # Not per token: NaN times a mask of zero is NaN.
    value = jnp.where(is_outside.any(), jnp.nan, state.value)
    return dataclasses.replace(state, value=value)

  def get_state_from_context(self, context: Any) -> kd.losses.Loss.State:
    return self.get_state(**kontext.resolve_from_keyed_obj(context, self))


def squeeze_labels(labels: jax.Array, head: _head.Head) -> jax.Array:
  """Returns the labels without their last axis.

  Raises:
    ValueError: They are not `[*B, L, 1]`.
  """
  wanted = (*head.hidden.shape[:-1], 1)
  if labels.shape != wanted:
    raise ValueError(
        f'labels= must be {wanted} for hidden states of {head.hidden.shape}, as'
        f' g4.data.ChatTask makes them; they are {labels.shape}.'
    )
  return labels[..., 0]
