"""What a restore needs of a checkpoint, whatever its format."""

import abc
from collections.abc import Mapping
import dataclasses
import math
from typing import Any

from etils import epath

from gemma4_lora.ckpts import _layouts
from gemma4_lora.ckpts import _rows
from gemma4_lora.ckpts import _trees


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Source(abc.ABC):
  """One checkpoint on disk.

  Attributes:
    path: Where its arrays are.
    layout: `nested`, `flat`, `stacked`, `kauldron` or `hugging_face`.
    leaves: All leaves, by their path in the nested layout.
  """

  path: epath.Path
  layout: str
  leaves: Mapping[_trees.Path, _layouts.Stored]

  @abc.abstractmethod
  def check(self, keys: set[_trees.Path], *, who: str) -> None:
    """Checks that the data of some arrays is there.

    Args:
      keys: Paths of arrays in the file.
      who: The transform that asks, for messages.

    Raises:
      ValueError: Data is missing.
    """

  @abc.abstractmethod
  def read(self, args: Mapping[_trees.Path, Any]) -> dict[_trees.Path, Any]:
    """Reads some arrays, all at once, and nothing else.

    Args:
      args: By the array's path in the file, how to read it:
        `ocp.RestoreArgs`.

    Returns:
      The arrays, by path in the file.
    """

  @abc.abstractmethod
  def open_rows(self, key: _trees.Path) -> _rows.Rows | None:
    """Opens one array to be read row by row; None if that saves no memory.

    Args:
      key: Path of the array in the file.
    """


def num_bytes(leaf: _layouts.Stored) -> int:
  if leaf.parts:
    return sum(map(num_bytes, leaf.parts))
  return math.prod(leaf.shape) * leaf.dtype.itemsize
