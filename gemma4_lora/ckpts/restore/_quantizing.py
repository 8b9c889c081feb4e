"""Weights that are quantised between the file and the devices."""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import numpy as np

from gemma4_lora import _trees
from gemma4_lora.ckpts.restore import _placing
from gemma4_lora.ckpts.restore import _quantize_on_load
from gemma4_lora.ckpts.restore import _restore_plan
from gemma4_lora.ckpts.sources import _open
from gemma4_lora.ckpts.sources import _quantized_leaves
from gemma4_lora.gemma4 import _names
from gemma4_lora.host import _memory

# Giving memory back takes half a second.
_GIVE_BACK_BYTES = 2**28


class Quantizing:
  """Quantises weights, one after the other, and places codes and scales.

  Attributes:
    made: The quantisation result of each leaf.
  """

  def __init__(
      self,
      loads: Sequence[_restore_plan.Load],
      placing: _placing.Placing,
      on_quantized: Callable[[_trees.Path, np.ndarray, Any], None] | None,
  ):
    """Creates it; quantises nothing.

    Args:
      loads: What is to be quantised.
      placing: Takes codes and scales.
      on_quantized: See `_prepare.Request`.
    """
    self._encodings = {x.model.path: x.model.encoding for x in loads}
    self._loads = {x.model.path: x for x in loads}
    self._placing, self._on_quantized = placing, on_quantized
    self.made: dict[_trees.Path, _quantized_leaves.Quality] = {}
    self._held = 0  # What was quantised since memory was given back, at most.

  def __contains__(self, path: _trees.Path) -> bool:
    return self._encodings.get(path) is not None

  def put(self, path: _trees.Path, value: Any) -> int:
    """Quantises and places a weight; returns its bytes in the file."""
    load, encoding = self._loads[path], self._encodings[path]
    assert encoding is not None
    quantized = _quantize_on_load.quantize(value, encoding)
    self.made[path] = quantized.quality
    is_table = _names.is_table(load.model.rel)
    if self._on_quantized is not None and not is_table:
      self._on_quantized(load.model.rel, value, quantized.value)
    for part, array in _trees.flatten(quantized.value).items():
      self._placing.put((*path, *part), array)
    size = _open.num_bytes(load.stored)
    self._held += size
    return size

  def give_back(self) -> None:
    """Gives memory back once there is enough of it."""
    if self._held > _GIVE_BACK_BYTES:
      _memory.give_back()
      self._held = 0
