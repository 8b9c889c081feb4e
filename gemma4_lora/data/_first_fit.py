"""First-fit decreasing: which items share a bin."""

from collections.abc import Sequence

import numpy as np


def first_fit_decreasing(
    sizes: Sequence[int] | np.ndarray, *, capacity: int
) -> list[list[int]]:
  """Returns the items of each bin, all bins within their capacity.

  Items are taken by size, the largest first, and the earlier of equal ones
  first. Each goes into the first bin with room: at most 11/9 of the fewest
  bins, plus one (https://doi.org/10.1137/0203025). Bins, and items in them, are
  then sorted in the order of the items.

  Args:
    sizes: Sizes of the items, in `[0, capacity]`; items of negative size are
      left out.
    capacity: Capacity of each bin.

  Returns:
    Indices of items. The result depends only on the arguments.

  Raises:
    ValueError: An item is larger than a bin.
  """
  sizes = np.asarray(sizes)
  if sizes.size and sizes.max() > capacity:
    i = int(sizes.argmax())
    raise ValueError(
        f'Item {i} has size {sizes[i]}, and bins have capacity={capacity}.'
    )
  order = [i for i in np.argsort(-sizes, kind='stable') if sizes[i] >= 0]
  rooms = _Rooms(len(order), capacity)
  bins: dict[int, list[int]] = {}
  for i in order:
    bins.setdefault(rooms.take(int(sizes[i])), []).append(int(i))
  return sorted(sorted(items) for items in bins.values())


class _Rooms:
  """Room of each bin, as a tree of maxima: finds the first fit in log time."""

  def __init__(self, number: int, capacity: int):
    self._width = 1 << max(number - 1, 0).bit_length()
    self._room = [capacity] * (2 * self._width)

  def take(self, size: int) -> int:
    """Takes room in the first bin that has it, and returns which it is."""
    room = self._room
    node = 1
    while node < self._width:
      node *= 2
      if room[node] < size:
        node += 1
    found = node - self._width
    room[node] -= size
    while node > 1:
      node //= 2
      room[node] = max(room[2 * node], room[2 * node + 1])
    return found
