"""Leaves that a run had quantised: quantised as they were, and fused."""

from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Mapping
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gemma4_lora import _trees
from gemma4_lora import quant
from gemma4_lora.ckpts.restore import _quantize_on_load
from gemma4_lora.ckpts.restore import _restore_plan
from gemma4_lora.nn import _fuse
from gemma4_lora.quant import _format
from gemma4_lora.runs import _base_arrays
from gemma4_lora.runs import _pieces
from gemma4_lora.runs import _places
from gemma4_lora.runs import _run


class FusedQuantized:
  """Fuses LoRA into the leaves that a run had quantised."""

  def __init__(
      self,
      encodings: Mapping[str, _format.Encoding],
      changes: Mapping[str, _fuse.Change],
      checksums: _base_arrays.BaseChecksums,
      *,
      unfused: bool,
  ):
    """Creates it.

    Args:
      encodings: How the run had its leaves, by dotted path.
      changes: What LoRA does to them, by dotted path.
      checksums: What LoRA was trained on.
      unfused: Whether to leave LoRA out, and the leaves quantised.
    """
    self._encodings, self._changes = encodings, changes
    self._checksums, self._unfused = checksums, unfused

  def encoding(self, leaf: _run.BaseLeaf) -> _format.Encoding | None:
    """Returns how the run had a leaf quantised; None if it had not."""
    if leaf.place is not None and leaf.place.stored.encoding is not None:
      return leaf.place.stored.encoding
    return self._encodings.get(leaf.path)

  def load(self, path: _trees.Path, leaf: _run.BaseLeaf) -> _restore_plan.Load:
    """Returns a leaf as a restore reads it."""
    assert leaf.place is not None
    model = _restore_plan.ModelLeaf(
        path=path,
        rel=path,
        shape=leaf.shape,
        dtype=leaf.model_dtype,
        encoding=self.encoding(leaf),
    )
    return _restore_plan.Load(model=model, stored=leaf.place.stored)

  def value(
      self,
      leaf: _run.BaseLeaf,
      place: _places.Place,
      array: Any,
      in_pieces: Collection[str] = (),
  ) -> np.ndarray | dict[str, Any] | _pieces.Pieces:
    """Returns a leaf: fused and dequantised, or with `unfused` quantised.

    Args:
      leaf: The leaf.
      place: Where it is.
      array: What is there: quantised, or to be quantised here.
      in_pieces: Dotted paths of leaves that may come in pieces.

    Raises:
      ValueError: It is not what LoRA was trained on.
    """
    encoding = self.encoding(leaf)
    assert encoding is not None
    if not quant.is_quantized(array):
      array = _quantize_on_load.quantize(array, encoding).value
    for part, x in _trees.flatten(array).items():
      path = '.'.join((leaf.path, *part))
      checksum = _base_arrays.checksum(x, x.dtype)
      self._checksums.check(leaf, place, checksum, path=path)
    if self._unfused:
      return array
    change = self._changes.get(leaf.path, _fuse.Change())
    by_rows = change.by_rows and encoding.block[0] == 1 and encoding.axis > 0
    multiple, step = _pieces.piece_rows(leaf) if by_rows else (1, leaf.shape[0])

    def pieces() -> Iterator[tuple[int, np.ndarray]]:
      for start in range(0, leaf.shape[0], step):
        stop = min(start + step, leaf.shape[0])
        rows, some = change, array
        if by_rows:
          rows = change.rows(start, stop)
          some = jax.tree.map(operator.itemgetter(slice(start, stop)), array)
        some = jax.tree.map(jnp.asarray, some)
        yield start, np.asarray(rows.fused(some, leaf.dtype))

    if by_rows and step < leaf.shape[0]:
      if leaf.path in in_pieces:
        return _pieces.Pieces(
            shape=leaf.shape,
            dtype=leaf.dtype,
            row_multiple=multiple,
            pieces=pieces(),
        )
      out = np.empty(leaf.shape, leaf.dtype)
      for start, rows in pieces():
        out[start : start + len(rows)] = rows
      return out
    ((_, whole),) = pieces()
    return whole
