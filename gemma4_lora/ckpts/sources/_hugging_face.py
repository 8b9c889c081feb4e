"""A checkpoint of transformers as a source, in gemma's leaves."""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping
import dataclasses
import math
from typing import Any

from etils import epath
import numpy as np

from gemma4_lora import _trees
from gemma4_lora.ckpts.sources import _checkpoint_layouts
from gemma4_lora.ckpts.sources import _source
from gemma4_lora.ckpts.sources import _stream
from gemma4_lora.gemma4 import _names
from gemma4_lora.hf.weights import _base_weights
from gemma4_lora.hf.weights import _by_name
from gemma4_lora.hf.weights import _mapped
from gemma4_lora.hf.weights import _to_tensors
from gemma4_lora.host import _memory
from gemma4_lora.host.ranges import _ranges

_EMBEDDING = ('params', *_names.EMBEDDING.split('.'))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class HuggingFaceSource(_source.Source):
  """Safetensors: a file, or several with an index.

  Attributes:
    weights: The tensors that make each leaf, by path.
    base: The file's tensors.
  """

  weights: Mapping[_trees.Path, _base_weights.TensorLeaf]
  base: _base_weights.BaseWeights

  def check(self, keys: set[_trees.Path], *, who: str) -> None:
    """Compares an output head, if there is one, to the embedding.

    Sizes of files were compared when they were opened.

    Args:
      keys: See `Source`.
      who: See `Source`.
    """
    if _EMBEDDING not in keys:
      return
    try:
      _by_name.check_head(self.base.named)
    except ValueError as e:
      raise ValueError(f'{who}: {self.path}: {e}') from e

  def spelled(
      self, shapes: Mapping[_trees.Path, tuple[int, ...]]
  ) -> dict[_trees.Path, str]:
    """See `Source`."""
    known = _to_tensors.names(
        {_trees.join(path): shape for path, shape in shapes.items()},
        self.base.config,
    )
    there = self.base.named.tensors
    return {
        path: ', '.join(
            f'{x.name} {x.shape}{" (is there)" if x.name in there else ""}'
            for x in known[_trees.join(path)]
        )
        for path in shapes
        if known.get(_trees.join(path))
    }

  def reader(
      self, key: _trees.Path, filled: _memory.Filled = _memory.filled
  ) -> Callable[[], Any]:
    """See `Source`.

    Not mapped: an array of jax must not depend on a file that may change.
    """
    return self.weights[key].begin(filled, self.look(key))

  def _open_rows(self, key: _trees.Path) -> _stream.Rows | None:
    """See `Source`."""
    # An array of several tensors would be assembled for each row, and a packed
    # one unpacked; rows of a transposed tensor are spread over all of it.
    leaf = self.weights[key]
    tensor = leaf.tensors[0]
    if len(leaf.tensors) > 1 or not isinstance(tensor, _mapped.Tensor):
      return None
    if tensor.file.is_local:
      return _MappedRows(leaf)
    return _RangeRows(leaf) if leaf.is_one_tensor else None


@dataclasses.dataclass(frozen=True)
class _MappedRows:
  """A tensor; only the rows that are read at once are mapped."""

  leaf: _base_weights.TensorLeaf

  def read(self, start: int, stop: int) -> np.ndarray:
    """See `Rows`."""
    return np.array(self.leaf.read()[start:stop])


@dataclasses.dataclass
class _RangeRows:
  """A tensor in a bucket, which is read some pieces ahead."""

  leaf: _base_weights.TensorLeaf

  _row: int = -1  # That the reader comes to next.
  _reader: Any = None

  def read(self, start: int, stop: int) -> np.ndarray:
    """See `Rows`."""
    if start != self._row:
      self._reader = self._open(start)
    self._row = stop
    shape = (stop - start, *self.leaf.shape[1:])
    return _memory.filled(shape, self.leaf.dtype, self._reader.read_into)

  def _open(self, row: int) -> _ranges.Reader:
    tensor = self.leaf.tensors[0]
    assert isinstance(tensor, _mapped.Tensor)
    return tensor.open(row * math.prod(self.leaf.shape[1:]))


def open_source(
    path: epath.Path, *, names: Collection[str] | None = None, who: str
) -> HuggingFaceSource:
  """Opens a checkpoint of transformers; reads no data.

  Args:
    path: A safetensors file, an index of several, or the folder of either.
    names: What the folder has, if that is known.
    who: The transform that asks, for messages.

  Raises:
    FileNotFoundError: A file is not there.
    ValueError: A file is damaged, or is not of Gemma 4.
  """
  base = _base_weights.open_weights(path, names=names, who=who)
  weights: dict[_trees.Path, _base_weights.TensorLeaf] = {
      ('params', *name.split('.')): leaf for name, leaf in base.leaves.items()
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
      base=base,
  )
