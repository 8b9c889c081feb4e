"""Arrays in memory as a source, for code that reads leaf by leaf."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
from typing import Any

from etils import epath
import numpy as np

from gemma4_lora import _trees
from gemma4_lora.ckpts.sources import _checkpoint_layouts
from gemma4_lora.ckpts.sources import _source
from gemma4_lora.host import _memory


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class InMemory(_source.Source):
  """Parameters as a checkpoint in the nested layout.

  Attributes:
    arrays: The arrays, by path as in `leaves`.
  """

  arrays: Mapping[_trees.Path, Any]

  def check(self, keys: set[_trees.Path], *, who: str) -> None:
    """Nothing to do: nothing is on disk."""

  def reader(
      self, key: _trees.Path, filled: _memory.Filled = _memory.filled
  ) -> Callable[[], Any]:
    """See `Source`."""
    look = self.look(key)

    def read():
      array = np.asarray(self.arrays[key])
      look(array)
      return array

    return read

  def _open_rows(self, key: _trees.Path) -> '_Rows':
    """See `Source`."""
    return _Rows(self.arrays[key])


@dataclasses.dataclass(frozen=True)
class _Rows:
  """An array whose rows are views."""

  array: Any

  def read(self, start: int, stop: int) -> np.ndarray:
    """See `Rows`."""
    return np.asarray(self.array)[start:stop]


def open_params(params: Mapping[str, Any], *, name: str) -> InMemory:
  """Returns parameters as a source.

  Args:
    params: Nested; quantised leaves as their codes and scales.
    name: Their name in messages, in place of a path.
  """
  arrays: dict[_trees.Path, Any] = {
      ('params', *k): x for k, x in _trees.flatten(params).items()
  }
  return InMemory(
      path=epath.Path(name),
      layout='nested',
      leaves={
          key: _checkpoint_layouts.Stored(
              path=key, key=key, shape=tuple(x.shape), dtype=np.dtype(x.dtype)
          )
          for key, x in arrays.items()
      },
      arrays=arrays,
  )
