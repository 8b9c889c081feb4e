"""Batches of which nothing is trained, because a mask is zero everywhere."""

import collections
from typing import Any

from gemma4_lora.losses import _uncounted


class Watch:
  """Finds out after the fact, so that nobody waits for a device.

  The counts of a step are looked at when the step after the next begins: by
  then they are there, and one step is still under way. Those of the first step,
  which has waited for the compiler, and of the last ones, after which all wait,
  at once.
  """

  def __init__(self):
    self._step: int | None = None
    self._pending: collections.deque[tuple[int, Any]] = collections.deque()

  def restart(self) -> None:
    """Begins a run: the next step is its first."""
    self._step = None

  def add(
      self, loss_states: Any, *, step: Any, num_steps: int | None = None
  ) -> None:
    """Takes the states of a step's losses, and looks at those that are due.

    Args:
      loss_states: By the loss's name.
      step: Of the train state that the step returned; an array is read in the
        first step alone.
      num_steps: That of the last step; None if it is not known.

    Raises:
      ValueError: A loss had no token to count.
    """
    is_first = self._step is None
    self._step = int(step) if self._step is None else self._step + 1
    self._pending.append((self._step, loss_states))
    lag = 0 if is_first or self._step == num_steps else 2
    while len(self._pending) > lag:
      number, states = self._pending.popleft()
      _check(states, step=number - 1)


def _check(states: Any, *, step: int) -> None:
  for name in _uncounted.uncounted(states):
    raise ValueError(
        f'g4.train.TrainStep: in step {step}, the mask of train_losses.{name} was'
        ' zero for the whole batch: nothing of it was trained. Look at what'
        ' writes the mask (g4.data.show; tasks of g4.data refuse rows without'
        ' a token to train), or go on nevertheless: '
        'g4.train.TrainStep(allow_empty_masks=True).'
    )
