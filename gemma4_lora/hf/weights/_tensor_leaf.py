"""A leaf of gemma, made from tensors of transformers."""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import ml_dtypes
import numpy as np

from gemma4_lora.hf.weights import _four_bit
from gemma4_lora.hf.weights import _mapped
from gemma4_lora.host import _memory

_FLOATS = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]

Tensor = _mapped.Tensor | _four_bit.Packed


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorLeaf:
  """A leaf of gemma's parameters, in files of transformers.

  Attributes:
    path: Dotted path below `params`.
    tensors: The tensors that make the leaf.
    shape: Its shape.
    make: Makes it from the tensors' arrays, all in its dtype.
  """

  path: str
  tensors: tuple[Tensor, ...]
  shape: tuple[int, ...]
  make: Callable[[Sequence[np.ndarray]], np.ndarray]

  @functools.cached_property
  def dtype(self) -> np.dtype:
    """The dtype of its tensors; if they differ, see `common_dtype`."""
    return common_dtype([x.dtype for x in self.tensors])

  @functools.cached_property
  def is_one_tensor(self) -> bool:
    """Whether its bytes are those of one tensor, in their order."""
    tensor, *others = self.tensors
    if others or not isinstance(tensor, _mapped.Tensor):
      return False
    blank = _memory.blank(tensor.shape, tensor.dtype)
    made = self.make([blank])
    is_all = made.size == blank.size and np.may_share_memory(made, blank)
    return not made.size or is_all and made.flags.c_contiguous

  def read(self) -> np.ndarray:
    """Makes the leaf; if it is one tensor, it may be mapped."""
    return self._made([tensor.read() for tensor in self.tensors])

  def load(self) -> Any:
    """Makes the leaf in new memory."""
    return self.begin()()

  def begin(
      self,
      filled: _memory.Filled = _memory.filled,
      look: _memory.Look = _memory.ignore,
  ) -> Callable[[], Any]:
    """Returns what makes the leaf in memory of its own.

    In a bucket, it begins to read at once.

    Args:
      filled: Makes the array, if the leaf is the bytes of one tensor.
      look: Is given each number once.
    """
    tensor = self.tensors[0]
    if self.is_one_tensor and isinstance(tensor, _mapped.Tensor):
      # Opened first, as XLA may take a while to allocate memory.
      read_into = tensor.open().read_into
      fill = functools.partial(_memory.fill_in_pieces, read_into, look)
      return lambda: filled(self.shape, self.dtype, fill)
    begun = [tensor.begin() for tensor in self.tensors]

    def load():
      array = self._made([load() for load in begun])
      look(array)
      return array

    return load

  def _made(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
    return self.make([x.astype(self.dtype, copy=False) for x in arrays])


def common_dtype(dtypes: Sequence[np.dtype]) -> np.dtype:
  """Returns the narrowest dtype that holds all numbers of several exactly.

  bfloat16 and float16 make float32.

  Args:
    dtypes: Dtypes of the tensors of one leaf.

  Raises:
    ValueError: They differ, and are not all floats.
  """
  different = {np.dtype(x) for x in dtypes}
  if len(different) == 1:
    return different.pop()
  if not different <= {np.dtype(x) for x in _FLOATS}:
    raise ValueError(
        f'dtypes {sorted(map(str, different))} do not make one leaf: only floats'
        ' convert to floats'
    )
  is_wide = np.dtype(np.float64) in different
  return np.dtype(np.float64 if is_wide else np.float32)
