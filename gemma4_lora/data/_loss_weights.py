"""Checks the weights of tokens in the loss."""

import numpy as np

from gemma4_lora.data.templates import _style


def check(
    weights: np.ndarray, style: _style.Style, *, token_weights: bool
) -> None:
  """Raises for weights that train nothing or do not fit the mask.

  Args:
    weights: The weight of each token of an example, f32 `[L]`.
    style: Its policies decide which tokens have a weight.
    token_weights: Whether the mask holds weights, not bools.

  Raises:
    ValueError: All are 0; or the mask has bools, and some weights are not 0 or
      1.
  """
  if not weights.any():
    raise ValueError(
        'ChatTask: nothing of the conversation would be trained: it has no'
        f' turn of the model with a weight (loss_on={style.loss_on!r},'
        f' thinking={style.thinking!r}).'
    )
  other = weights[(weights != 0) & (weights != 1)]
  if other.size and not token_weights:
    raise ValueError(
        f"ChatTask: a message has the 'weight' {float(other[0])}, which a mask"
        ' of bools cannot hold. Set `token_weights=True`.'
    )
