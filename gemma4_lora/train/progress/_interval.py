"""What is logged about the steps since the last line of the log."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import time
from typing import Any

import flax
from kauldron import kd

from gemma4_lora.train.progress import _learning_rate
from gemma4_lora.train.progress import _peak_memory
from gemma4_lora.train.progress import _step_counts

GRAD_NORM = 'metrics/grad_norm'
LEARNING_RATE = 'schedules/learning_rate'
PEAK_GIB = 'perf_stats/peak_memory_gib'
HOURS_LEFT = 'perf_stats/hours_left'
PER_STEP = {
    'tokens': 'perf_stats/tokens_per_step',
    'trained': 'perf_stats/trained_tokens_per_step',
}


@flax.struct.dataclass
class Aux(kd.train.AuxiliariesState):
  """Kauldron's auxiliaries, with more scalars for the writers.

  Attributes:
    counts: Counts of the step, see `_step_counts.of_step`.
    scalars: Values that the host knows, by name.
  """

  counts: Any = None
  scalars: Mapping[str, float] = flax.struct.field(
      pytree_node=False, default_factory=dict
  )

  def compute(self, *, flatten: bool = True) -> kd.train.AuxiliariesOutput:
    """See `kd.train.AuxiliariesState.compute`.

    Args:
      flatten: As writers want it. Without, checkpointers look for the best
        metric in it, and it is Kauldron's.
    """
    output = super().compute(flatten=flatten)
    if not flatten:
      return output
    added = dict(self.scalars)
    norm = _step_counts.read(self.counts).get('grad_norm')
    if norm is not None:
      added[GRAD_NORM] = norm
    # A user's own value of the same name wins.
    return dataclasses.replace(
        output, metric_values=added | output.metric_values
    )


class Interval:
  """Counts steps and tokens between two lines of the log."""

  def __init__(self):
    self.restart()

  def restart(self) -> None:
    """Begins a run."""
    self._is_first = (
        True  # Whether the interval has the step that waits for the compiler.
    )
    self._num = 0
    self._sums: dict[str, float] = {}
    self._start: tuple[float, int] | None = None
    self._rate: Callable[[int], float] | None = None

  def add(self, counts: Any) -> None:
    """Adds the counts of a step that has ended."""
    self._num += 1
    for name, value in _step_counts.read(counts).items():
      self._sums[name] = self._sums.get(name, 0.0) + value

  def aux(
      self,
      counts: Any,
      *,
      trainer: kd.train.Trainer,
      step: int,
      last_step: int | None,
      **states: Any,
  ) -> Aux:
    """Returns what is logged after a step, and starts the next interval.

    Args:
      counts: Those of the step, on the device.
      trainer: The trainer.
      step: That of the state after the step.
      last_step: That of the state when the run ends.
      **states: Of Kauldron's class.
    """
    if self._is_first:
      self._rate = _learning_rate.find(trainer)
    scalars = self._scalars(step=step, last_step=last_step)
    if self._rate is not None:
      scalars[LEARNING_RATE] = self._rate(step - 1)
    if self._is_first:
      self._start = (time.monotonic(), step)
    self._is_first, self._num, self._sums = False, 0, {}
    return Aux(counts=counts, scalars=scalars, **states)

  def _scalars(self, *, step: int, last_step: int | None) -> dict[str, float]:
    """Returns the host's values; no rates if the interval had a compilation."""
    found = {}
    if not self._is_first and self._num:
      found |= {
          tag: self._sums[name] / self._num
          for name, tag in PER_STEP.items()
          if name in self._sums
      }
    if self._start is not None and last_step is not None:
      start, first = self._start
      hours = (time.monotonic() - start) / (step - first) / 3600
      found[HOURS_LEFT] = max(hours * (last_step - step), 0.0)
    peak = _peak_memory.peak_gib()
    if peak is not None:
      found[PEAK_GIB] = peak
    return found
