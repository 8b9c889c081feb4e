"""Checks numbers of a step later, so that the host need not wait for them."""

import collections
from collections.abc import Callable
from typing import Any


class Watch:
  """Gives a step's numbers to a check once the device has computed them.

  They are checked when the step after the next begins: by then they are
  computed, and one step is still running. The first step, which has waited for
  the compiler, and steps after which the host waits anyway, are checked at
  once.

  All hosts check the same numbers after the same step, so that all stop
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
      step: Step of the train state that the step returned. An array is read in
        the first step only.
      waits: Whether the host waits for the device after the given step: it is
        the last, or will be saved next.

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
