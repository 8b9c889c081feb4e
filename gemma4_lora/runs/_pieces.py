"""Limits how much of a run's leaves is in memory at once."""

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import numpy as np

from gemma4_lora.runs import _run

# What is read at once of small leaves; a larger leaf is read alone.
GROUP_BYTES = 2**26
# What is read, fused and written at once of a large leaf, and the row multiple
# that a piece must divide into.
PIECE_BYTES = 2**26
MULTIPLE_BYTES = 2**24


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pieces:
  """A leaf with only some rows in memory at a time.

  Attributes:
    shape: The leaf's shape.
    dtype: The leaf's dtype.
    row_multiple: Each piece except the last has a multiple of so many rows.
    pieces: The first row of each, and its rows. To be gone through once.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  row_multiple: int
  pieces: Iterator[tuple[int, np.ndarray]]

  @property
  def size(self) -> int:
    """Number of entries."""
    return math.prod(self.shape)


# A dict is a quantised array.
Group = list[tuple[_run.BaseLeaf, np.ndarray | dict[str, Any] | Pieces]]


def groups(
    leaves: Sequence[_run.BaseLeaf],
) -> Iterator[list[_run.BaseLeaf]]:
  """Yields leaves that are read together, arrays of several never apart.

  What has GROUP_BYTES or more is one array.
  """
  by_array: dict[Any, list[_run.BaseLeaf]] = {}
  for leaf in leaves:
    key: Any = leaf.path
    if leaf.place is not None:
      key = (leaf.place.source, leaf.place.stored.key)
    by_array.setdefault(key, []).append(leaf)
  group, total = [], 0
  for same in by_array.values():
    size = sum(map(size_of, same))
    if group and total + size >= GROUP_BYTES:
      yield group
      group, total = [], 0
    group += same
    total += size
  if group:
    yield group


def size_of(leaf: _run.BaseLeaf) -> int:
  return math.prod(leaf.shape) * leaf.dtype.itemsize


def index_of(leaf: _run.BaseLeaf) -> int:
  """Row of a leaf in an array of several."""
  assert leaf.place is not None and leaf.place.stored.index is not None
  return leaf.place.stored.index


def piece_rows(leaf: _run.BaseLeaf) -> tuple[int, int]:
  """Returns the row multiple and the number of rows of a leaf's pieces."""
  row_bytes = max(1, size_of(leaf) // leaf.shape[0])
  multiple = max(1, MULTIPLE_BYTES // row_bytes)
  return multiple, multiple * max(1, PIECE_BYTES // (multiple * row_bytes))
