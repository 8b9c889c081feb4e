"""Batches of which nothing is trained, because a mask is zero everywhere."""

import collections
from typing import Any

import jax
from kauldron import kd
from kauldron.losses import base as losses_base
import numpy as np

_is_state = kd.metrics.State.isinstance


class Watch:
  """Finds out after the fact, so that nobody waits for a device.

  The counts of a step are looked at when the step after the next begins: by
  then they are there, and one step is still under way. Those of the first step,
  which has waited for the compiler, are looked at once.
  """

  def __init__(self):
    self._is_first = True
    self._pending: collections.deque[Any] = collections.deque()

  def add(self, loss_states: Any) -> None:
    """Takes the states of a step's losses, and looks at those of an earlier one.

    Raises:
      ValueError: A loss had no token to count.
    """
    if self._is_first:
      self._is_first = False
      _check(loss_states, when='in the first step')
      return
    self._pending.append(loss_states)
    if len(self._pending) > 2:
      _check(self._pending.popleft(), when='two steps ago')


def _check(states: Any, *, when: str) -> None:
  for path, x in jax.tree_util.tree_leaves_with_path(states, is_leaf=_is_state):
    if not isinstance(x, losses_base.AllReduceMean) or np.any(x.count):
      continue
    name = jax.tree_util.keystr(path, simple=True, separator='.')
    raise ValueError(
        f'g4.train.TrainStep: {when}, the mask of train_losses.{name} was'
        ' zero for the whole batch: nothing of it was trained. Look at what'
        ' writes the mask (g4.data.show; tasks of g4.data refuse rows without'
        ' a token to train), or go on nevertheless: '
        'g4.train.TrainStep(allow_empty_masks=True).'
    )
