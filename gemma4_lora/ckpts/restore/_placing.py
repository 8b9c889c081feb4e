"""Replaces leaves, so that no device holds the old and the new one."""

from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from gemma4_lora import _trees
from gemma4_lora.ckpts.restore import _quantize_on_load
from gemma4_lora.ckpts.restore import _restore_plan
from gemma4_lora.gemma4 import _names
from gemma4_lora.host import _devices


class Placing:
  """Replaces leaves, and frees the old ones.

  Attributes:
    old: The leaves of the state, by path. They give dtype and sharding.
    new: The leaves that were placed.
  """

  def __init__(
      self,
      old: Mapping[_trees.Path, Any],
      *,
      state: Any,
      replaced: Iterable[_restore_plan.ModelLeaf],
  ):
    """Creates it; places nothing.

    Args:
      old: See `Placing`.
      state: The whole state. Arrays that are also used elsewhere in it are not
        freed.
      replaced: All leaves that will be placed.
    """
    self.old = old
    self.new: dict[_trees.Path, Any] = {}
    paths = {x.path for leaf in replaced for x in leaf.parts.values()}
    self._in_use = {
        id(x) for path, x in _trees.flatten(state).items() if path not in paths
    }

  def put(self, path: _trees.Path, value: Any) -> int:
    """Frees the old array, then places its value; returns its bytes."""
    self._free(path)
    self.new[path] = jax.block_until_ready(
        _devices.place(value, self.old[path])
    )
    return value.nbytes

  def fill(self, leaf: _restore_plan.ModelLeaf) -> None:
    """Places the fixed value of a leaf that the checkpoint does not have."""
    value: Any = _names.fill_value(leaf.path)
    if leaf.encoding is None:
      host = np.broadcast_to(np.asarray(value, leaf.dtype), leaf.shape)
      self.new[leaf.path] = _devices.place(host, self.old[leaf.path])
      return
    filled = _quantize_on_load.fill(value, leaf.shape, leaf.encoding)
    for part, x in _trees.flatten(filled).items():
      path = (*leaf.path, *part)
      self.new[path] = _devices.place(x, self.old[path])

  def free(self, leaf: _restore_plan.ModelLeaf) -> None:
    """Frees the old arrays of a leaf."""
    for part in leaf.parts.values():
      self._free(part.path)

  def _free(self, path: _trees.Path) -> None:
    array = self.old[path]
    if isinstance(array, jax.Array) and id(array) not in self._in_use:
      array.delete()
