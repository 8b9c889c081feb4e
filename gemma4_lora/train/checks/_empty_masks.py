"""Finds batches without a trained token: a mask is zero everywhere."""

from typing import Any

from gemma4_lora.losses import _uncounted


def check(states: Any, step: int) -> None:
  """Raises if a loss had no token to count.

  Args:
    states: States of the losses of a step, by the loss's name.
    step: The step.
  """
  for name in _uncounted.uncounted(states):
    raise ValueError(
        f'g4.train.TrainStep: in step {step}, the mask of train_losses.{name} was'
        ' zero for the whole batch: nothing of it was trained. Look at what'
        ' writes the mask (g4.data.show; tasks of g4.data refuse rows without'
        ' a token to train), or go on anyway:'
        ' g4.train.TrainStep(allow_empty_masks=True).'
    )
