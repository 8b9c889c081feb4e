"""A checkpoint of transformers as a source, in gemma's leaves."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
import os
import pathlib
from typing import Any

from etils import epath
import numpy as np

from gemma4_lora import _trees
from gemma4_lora.ckpts.sources import _checkpoint_layouts
from gemma4_lora.ckpts.sources import _source
from gemma4_lora.ckpts.sources import _stream
from gemma4_lora.hf.weights import _base_weights
from gemma4_lora.hf.weights import _mapped
from gemma4_lora.host import _memory


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class HuggingFaceSource(_source.Source):
  """Safetensors: a file, or several with an index.

  Attributes:
    weights: By path, what makes each leaf.
  """

  weights: Mapping[_trees.Path, _base_weights.TensorLeaf]

  def check(self, keys: set[_trees.Path], *, who: str) -> None:
    """Nothing to do: sizes of files were compared when they were opened."""

  def reader(
      self, key: _trees.Path, filled: _memory.Filled = _memory.filled
  ) -> Callable[[], Any]:
    """See `Source`.

    Not mapped: an array of jax must not depend on a file that may change.
    """
    return functools.partial(self.weights[key].load, filled)

  def open_rows(self, key: _trees.Path) -> _stream.Rows | None:
    """See `Source`."""
    # Of several tensors the array would be put together for each row, and what
    # is packed unpacked.
    leaf = self.weights[key]
    is_mapped = isinstance(leaf.tensors[0], _mapped.Tensor)
    if len(leaf.tensors) > 1 or not is_mapped:
      return None
    return _MappedRows(leaf)


@dataclasses.dataclass(frozen=True)
class _MappedRows:
  """A tensor, of which no more is mapped than what is read at once."""

  leaf: _base_weights.TensorLeaf

  def read(self, start: int, stop: int) -> np.ndarray:
    """See `Rows`."""
    return np.array(self.leaf.read()[start:stop])


def open_source(path: epath.Path, *, who: str) -> HuggingFaceSource:
  """Opens a checkpoint of transformers; reads no data.

  Args:
    path: A safetensors file, an index of several, or the folder of either.
    who: The transform that asks, for messages.

  Raises:
    FileNotFoundError: A file is not there.
    ValueError: A file is damaged, is no Gemma 4, or is not on this machine.
  """
  if '://' in os.fspath(path):
    raise ValueError(
        f'{who}: {path}: safetensors are mapped to memory: copy them to this'
        ' machine first.'
    )
  weights: dict[_trees.Path, _base_weights.TensorLeaf] = {
      ('params', *name.split('.')): leaf
      for name, leaf in _base_weights.open_weights(
          pathlib.Path(path), who=who
      ).items()
  }
  return HuggingFaceSource(
      path=path,
      layout='hugging_face',
      leaves={
          key: _checkpoint_layouts.Stored(
              path=key, key=key, shape=leaf.shape, dtype=leaf.dtype
          )
          for key, leaf in weights.items()
      },
      weights=weights,
  )
