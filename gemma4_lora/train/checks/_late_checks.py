"""Looks at numbers of a step after the fact, so that nobody waits for a device."""

import collections
from collections.abc import Callable
from typing import Any


class Watch:
  """Hands a step's numbers to a check when they are there in any case.

  Those of a step are looked at when the step after the next begins: by then they
  are there, and one step is still under way. Those of the first step, which has
  waited for the compiler, and of steps after which all wait, at once.

  All hosts look at the same numbers after the same step, so that all stop
  together.
  """

  def __init__(self):
    self._step: int | None = None
    self._pending: collections.deque[tuple[int, Any]] = collections.deque()

  @property
  def is_first(self) -> bool:
    """Whether no step was done since the run began."""
    return self._step is None

  def restart(self) -> None:
    """Begins a run: the next step is its first."""
    self._step = None
    self._pending.clear()

  def add(
      self,
      numbers: Any,
      *,
      check: Callable[[Any, int], None],
      step: Any,
      waits: Callable[[int], bool] = lambda step: False,
  ) -> int:
    """Takes the numbers of a step, and checks those that are due.

    Args:
      numbers: What the step computed, on the device.
      check: Raises for the numbers of a step, given the step.
      step: Of the train state that the step returned; an array is read in the
        first step alone.
      waits: Whether all wait for the device after a step, given that of the
        state: it is the last, or is saved next.

    Returns:
      The step of the state.
    """
    is_first = self.is_first
    self._step = int(step) if self._step is None else self._step + 1
    self._pending.append((self._step, numbers))
    lag = 0 if waits(self._step) or is_first else 2
    while len(self._pending) > lag:
      number, due = self._pending.popleft()
      check(due, number - 1)
    return self._step
