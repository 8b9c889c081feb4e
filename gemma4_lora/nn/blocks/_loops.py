"""Finds what repeats in a sequence of layers."""

from collections.abc import Hashable
from collections.abc import Sequence
import dataclasses


@dataclasses.dataclass(frozen=True)
class Layer:
  """One layer."""

  size = 1


@dataclasses.dataclass(frozen=True)
class Loop:
  """Layers that repeat.

  Attributes:
    body: The repeated layers.
    count: How often.
  """

  body: 'Loops'
  count: int

  @property
  def size(self) -> int:
    """How many layers it stands for."""
    return self.count * sum(part.size for part in self.body)


Loops = tuple[Layer | Loop, ...]


def find(kinds: Sequence[Hashable]) -> Loops:
  """Returns the sequence as loops, of the fewest bodies that we find.

  `LLGLLG` is a loop, taken twice, of a loop over `L` and of `G`.

  Args:
    kinds: What each layer is; equal ones may share a body.
  """
  parts: list[Layer | Loop] = []
  start = 0
  while start < len(kinds):
    period, count = _longest(kinds, start)
    body = find(kinds[start : start + period]) if count > 1 else ()
    parts.append(Loop(body, count) if body else Layer())
    start += period * count
  return tuple(parts)


def _longest(kinds: Sequence[Hashable], start: int) -> tuple[int, int]:
  """Returns period and count of what saves most bodies, from `start` on."""
  best = (1, 1)
  for period in range(1, (len(kinds) - start) // 2 + 1):
    body = kinds[start : start + period]
    count = 1
    while kinds[start + count * period :][:period] == body:
      count += 1
    if (count - 1) * period > (best[1] - 1) * best[0]:
      best = (period, count)
  return best
