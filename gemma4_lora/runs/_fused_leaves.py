"""The leaves of a fused model, one after the other: never two models in memory.

A leaf is read, LoRA is added, and the leaf is yielded. Small leaves are read
together, as reading one by one is slow; large ones come in pieces. If the run
had a quantised base, a leaf is quantised in the same way, and dequantised.
"""

from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from gemma4_lora import nn
from gemma4_lora.ckpts.restore import _quantize_on_load
from gemma4_lora.ckpts.restore import _read
from gemma4_lora.ckpts.sources import _stream
from gemma4_lora.gemma4 import _names
from gemma4_lora.host import _checksums
from gemma4_lora.host import _memory
from gemma4_lora.nn import _fuse
from gemma4_lora.nn.branches import _init
from gemma4_lora.nn.from_base import _init_from_base
from gemma4_lora.quant import _format
from gemma4_lora.runs import _base_arrays
from gemma4_lora.runs import _changes
from gemma4_lora.runs import _fused_quantized
from gemma4_lora.runs import _pieces
from gemma4_lora.runs import _places
from gemma4_lora.runs import _run


class FusedLeaves:
  """Reads the leaves of a run's base and fuses its LoRA into them."""

  def __init__(self, run: _run.Run, *, who: str, unfused: bool = False):
    """Creates it; reads nothing.

    Args:
      run: The run.
      who: The command, for messages.
      unfused: Whether to leave LoRA out: the base as the run had it, quantised
        if it was.

    Raises:
      ValueError: Its LoRA is not the model's.
    """
    self._run, self._who, self._unfused = run, who, unfused
    self._init = getattr(run.model, 'init_lora_weights', 'default')
    self._changes: Mapping[str, _fuse.Change] = {}
    self._encodings: Mapping[str, _format.Encoding] = {}
    # The base alone was not trained on: it stays as it is in the file.
    if run.lora and isinstance(run.model, nn.LoRA):
      self._encodings = run.model.quantized
    if run.lora:
      self._changes = _changes.changes(run, who=who)
    self._checksums = _base_arrays.BaseChecksums(
        run, changed=self._changes, init=self._init, who=who
    )
    self._quantized = _fused_quantized.FusedQuantized(
        self._encodings, self._changes, self._checksums, unfused=unfused
    )

  @property
  def num_changed(self) -> int:
    """How many leaves LoRA changes."""
    return len(self._changes)

  @property
  def num_quantized(self) -> int:
    """How many leaves the run had quantised."""
    return len(self._encodings)

  def read(
      self, leaves: Sequence[_run.BaseLeaf], *, in_pieces: Collection[str] = ()
  ) -> Iterator[_pieces.Group]:
    """Yields leaves with their values, small ones together.

    Args:
      leaves: Some of the run's.
      in_pieces: Paths of leaves that may come as `Pieces`.

    Raises:
      ValueError: A leaf is not what LoRA was trained on.
    """
    for group in _pieces.groups(leaves):
      if sum(map(_pieces.size_of, group)) < _pieces.GROUP_BYTES:
        yield list(self._read(group))
      else:
        yield from self._read_large(group, in_pieces)
      _memory.give_back()

  def _read_large(
      self, group: Sequence[_run.BaseLeaf], in_pieces: Collection[str]
  ) -> Iterator[_pieces.Group]:
    """Yields the leaves of one array in one group, or as they are read."""
    place = group[0].place
    if place is not None and self._quantized.encoding(group[0]) is not None:
      yield from self._read_quantized(group, place, in_pieces)
      return
    is_stacked = place is not None and place.stored.index is not None
    rows = None
    if place is not None and (
        is_stacked or self._by_rows(group[0], place, in_pieces)
    ):
      place.source.check({place.stored.key}, who=self._who)
      rows = place.source.open_rows(place.stored.key)
    if rows is None or place is None:
      yield list(self._read(group))
    elif is_stacked:
      for leaf in sorted(group, key=_pieces.index_of):
        array = rows.read(_pieces.index_of(leaf), _pieces.index_of(leaf) + 1)[0]
        yield [(leaf, self._value(leaf, place, array))]
        del array
    else:
      yield [(group[0], self._in_pieces(group[0], place, rows))]

  def _read_quantized(
      self,
      group: Sequence[_run.BaseLeaf],
      place: _places.Place,
      in_pieces: Collection[str],
  ) -> Iterator[_pieces.Group]:
    """Yields the leaves of one array, in pieces where that can be."""
    by_path = {tuple(leaf.path.split('.')): leaf for leaf in group}
    stored = {x.key for x in place.stored.parts} or {place.stored.key}
    place.source.check(stored, who=self._who)
    loads = [self._quantized.load(path, leaf) for path, leaf in by_path.items()]
    for path, array in _read.streamed_leaves(place.source, loads, whole=False):
      leaf = by_path.pop(path)
      value = self._quantized.value(leaf, place, array, in_pieces)
      yield [(leaf, value)]
      del array, value
    for leaf in by_path.values():
      yield list(self._read([leaf], in_pieces))

  def _by_rows(
      self,
      leaf: _run.BaseLeaf,
      place: _places.Place,
      in_pieces: Collection[str],
  ) -> bool:
    """Whether a leaf can be fused piece by piece, and may come so."""
    if leaf.path not in in_pieces or not leaf.shape:
      return False
    change = self._changes.get(leaf.path)
    if change is None:
      return True
    return change.by_rows and not self._is_residual(place, change)

  def _in_pieces(
      self, leaf: _run.BaseLeaf, place: _places.Place, rows: _stream.Rows
  ) -> _pieces.Pieces:
    multiple, step = _pieces.piece_rows(leaf)

    def pieces():
      change = self._changes.get(leaf.path)
      checksum = _checksums.RowsChecksum(leaf.shape, leaf.model_dtype)
      for start in range(0, leaf.shape[0], step):
        stop = min(start + step, leaf.shape[0])
        array = rows.read(start, stop)
        if change is not None:
          array = array.astype(leaf.model_dtype, copy=False)
        checksum.add(start, array)
        array = array.astype(leaf.dtype, copy=False)
        if change is not None and not self._unfused:
          array = np.asarray(change.rows(start, stop).fuse(jnp.asarray(array)))
        yield start, array
      self._checksums.check(leaf, place, checksum.value)

    return _pieces.Pieces(
        shape=leaf.shape,
        dtype=leaf.dtype,
        row_multiple=multiple,
        pieces=pieces(),
    )

  def _read(
      self, group: Sequence[_run.BaseLeaf], in_pieces: Collection[str] = ()
  ) -> _pieces.Group:
    """Returns leaves that are read together."""
    arrays = _base_arrays.read(group, who=self._who)
    out: _pieces.Group = []
    for leaf in group:
      if leaf.place is None:
        out.append((leaf, self._filled(leaf)))
        continue
      stored = leaf.place.stored
      if stored.parts:
        value = _base_arrays.quantized(stored, arrays, leaf.place.source)
        value = self._quantized.value(leaf, leaf.place, value, in_pieces)
        out.append((leaf, value))
        continue
      array = arrays[leaf.place.source, stored.key]
      array = np.asarray(array if stored.index is None else array[stored.index])
      if self._quantized.encoding(leaf) is not None:
        value = self._quantized.value(leaf, leaf.place, array, in_pieces)
      else:
        value = self._value(leaf, leaf.place, array)
      out.append((leaf, value))
    return out

  def _filled(self, leaf: _run.BaseLeaf) -> np.ndarray | dict[str, Any]:
    """Returns a leaf that no file has, as a restore fills it."""
    value = _names.fill_value(tuple(leaf.path.split('.')))
    encoding = self._quantized.encoding(leaf)
    if encoding is not None and self._unfused:
      return _quantize_on_load.fill(value, leaf.shape, encoding)
    return np.full(leaf.shape, value, leaf.dtype)

  def _value(
      self, leaf: _run.BaseLeaf, place: _places.Place, array: np.ndarray
  ) -> np.ndarray:
    change = self._changes.get(leaf.path)
    if change is None:
      self._check(leaf, place, array)
      return array.astype(leaf.dtype, copy=False)
    # As the run had it.
    array = array.astype(leaf.model_dtype, copy=False)
    if self._is_residual(place, change):
      new = _init_from_base.residual(
          self._run.model, leaf.path, jnp.asarray(array)
      )
      array = np.asarray(new)
    self._check(leaf, place, array)
    if self._unfused:
      return array
    array = array.astype(leaf.dtype, copy=False)
    # What fusing needs in float32 is then a piece.
    step = len(array) if array.ndim else 1
    if change.by_rows:
      step = max(1, step * _pieces.PIECE_BYTES // max(array.nbytes, 1))
    if not array.ndim or step >= len(array):
      return np.asarray(change.fuse(jnp.asarray(array)))
    array = array if array.flags.writeable else array.copy()
    for start in range(0, len(array), step):
      rows = change.rows(start, start + step)
      some = jnp.asarray(array[start : start + step])
      array[start : start + step] = np.asarray(rows.fuse(some))
    return array

  def _is_residual(self, place: _places.Place, change: _fuse.Change) -> bool:
    """Whether PiSSA or OLoRA has yet to change a released leaf."""
    waits = place.released and bool(change.branches)
    return waits and _init.is_from_base(self._init)

  def _check(
      self, leaf: _run.BaseLeaf, place: _places.Place, array: np.ndarray
  ) -> None:
    """Raises unless a leaf is what LoRA was trained on."""
    checksum = _base_arrays.checksum(array, leaf.model_dtype)
    self._checksums.check(leaf, place, checksum)
