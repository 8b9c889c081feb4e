"""The cross-entropy as a loss of Kauldron's."""

import dataclasses

import jax
from kauldron import kd
from kauldron import kontext

from gemma4_lora.losses import _cross_entropy
from gemma4_lora.losses import _head


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
    labels: Key of the labels, integers `[*B, L, 1]`.
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
      head: Hidden states `[*B, L, D]`, and what makes logits of them.
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
