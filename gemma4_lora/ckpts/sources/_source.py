"""What a restore needs of a checkpoint, whatever its format."""

import abc
from collections.abc import Callable
from collections.abc import Mapping
from concurrent import futures
import dataclasses
import math
import os
from typing import Any

from etils import epath
import orbax.checkpoint as ocp

from gemma4_lora import _trees
from gemma4_lora.ckpts.sources import _ahead
from gemma4_lora.ckpts.sources import _checkpoint_layouts
from gemma4_lora.ckpts.sources import _stream
from gemma4_lora.host import _memory
from gemma4_lora.host import _paths
from gemma4_lora.host import _ranges


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
  leaves: Mapping[_trees.Path, _checkpoint_layouts.Stored]

  @abc.abstractmethod
  def check(self, keys: set[_trees.Path], *, who: str) -> None:
    """Checks that the data of some arrays is there.

    Args:
      keys: Paths of arrays in the file.
      who: The transform that asks, for messages.

    Raises:
      ValueError: Data is missing.
    """

  def spelled(
      self, shapes: Mapping[_trees.Path, tuple[int, ...]]
  ) -> dict[_trees.Path, str]:
    """Returns the file's own names and shapes of leaves, where they are others.

    Args:
      shapes: Shapes of leaves of the model, by path below `params`.
    """
    del shapes
    return {}

  def read(
      self,
      args: Mapping[_trees.Path, ocp.RestoreArgs],
      filled: _memory.Filled = _memory.filled,
  ) -> dict[_trees.Path, Any]:
    """Reads some arrays, all at once, and nothing else.

    Args:
      args: How Orbax is to read each array, by the array's path in the file.
      filled: Makes those that Orbax does not read.

    Returns:
      The arrays, by path in the file. Those that have a `reader` are as
      `filled` makes them, whatever `args` says.
    """
    with futures.ThreadPoolExecutor(self.num_readers) as pool:
      started = {}
      for key in args:
        future = _ahead.take(self.path, key)
        if future is None and (reader := self.reader(key, filled)) is not None:
          future = pool.submit(reader)
        if future is not None:
          started[key] = future
      rest = {key: arg for key, arg in args.items() if key not in started}
      arrays = self._read_by_orbax(rest) if rest else {}
      return arrays | {key: future.result() for key, future in started.items()}

  @property
  def num_readers(self) -> int:
    """How many arrays are read at a time: one for each core, on this machine."""
    is_local = _paths.is_local(self.path)
    return (os.cpu_count() or 1) if is_local else _ranges.NUM_READERS

  @abc.abstractmethod
  def reader(
      self, key: _trees.Path, filled: _memory.Filled = _memory.filled
  ) -> Callable[[], Any] | None:
    """Returns what reads one array; None if Orbax does it better.

    Args:
      key: Path of the array in the file.
      filled: Makes the array.
    """

  def _read_by_orbax(
      self, args: Mapping[_trees.Path, ocp.RestoreArgs]
  ) -> dict[_trees.Path, Any]:
    """Reads what has no `reader`, which only an `OrbaxSource` has."""
    raise AssertionError(f'{type(self).__name__} reads all: {list(args)}')

  @abc.abstractmethod
  def open_rows(self, key: _trees.Path) -> _stream.Rows | None:
    """Opens one array to be read row by row; None if that saves no memory.

    Args:
      key: Path of the array in the file.
    """


def num_bytes(leaf: _checkpoint_layouts.Stored) -> int:
  if leaf.parts:
    return sum(map(num_bytes, leaf.parts))
  return math.prod(leaf.shape) * leaf.dtype.itemsize
