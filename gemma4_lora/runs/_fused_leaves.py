"""The leaves of a fused model, one after the other: never two models in memory.

A leaf is read, what LoRA adds is added, and it is handed on. Small leaves are
read together, as reading one by one is slow; large ones come in pieces. Where the
run had a quantised base, a leaf is quantised as it was then, and dequantised.
"""

from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import operator
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from gemma4_lora import _trees
from gemma4_lora import nn
from gemma4_lora import quant
from gemma4_lora.ckpts.restore import _quantize_on_load
from gemma4_lora.ckpts.restore import _read
from gemma4_lora.ckpts.restore import _restore_plan
from gemma4_lora.ckpts.sources import _checkpoint_layouts
from gemma4_lora.ckpts.sources import _hugging_face
from gemma4_lora.ckpts.sources import _open
from gemma4_lora.ckpts.sources import _stream
from gemma4_lora.gemma4 import _names
from gemma4_lora.host import _checksums
from gemma4_lora.host import _memory
from gemma4_lora.nn import _fuse
from gemma4_lora.nn.branches import _init
from gemma4_lora.nn.from_base import _init_from_base
from gemma4_lora.quant import _format
from gemma4_lora.runs import _changes
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
    self._changes: Mapping[str, _fuse.Change] = {}
    # The base alone, which was not trained on, is as it is in the file.
    self._encodings: Mapping[str, _format.Encoding] = {}
    if run.lora and isinstance(run.model, nn.LoRA):
      self._encodings = run.model.quantized
    if run.lora:
      self._changes = _changes.changes(run, who=who)
    self._checksums: Mapping[str, str] = {}
    if run.fingerprint is not None:
      self._checksums = run.fingerprint['base'].get('checksums', {})

  @property
  def num_changed(self) -> int:
    """How many leaves LoRA changes."""
    return len(self._changes)

  @property
  def num_quantized(self) -> int:
    """How many leaves the run had quantised."""
    return len(self._encodings)

  def _encoding(self, leaf: _run.BaseLeaf) -> _format.Encoding | None:
    """Returns how the run had a leaf quantised; None if it had not."""
    if leaf.place is not None and leaf.place.stored.encoding is not None:
      return leaf.place.stored.encoding
    return self._encodings.get(leaf.path)

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
    if place is not None and self._encoding(group[0]) is not None:
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
    loads = [self._load(path, leaf) for path, leaf in by_path.items()]
    for path, array in _read.streamed_leaves(place.source, loads, whole=False):
      leaf = by_path.pop(path)
      yield [(leaf, self._of_quantized(leaf, place, array, in_pieces))]
      del array
    for leaf in by_path.values():
      yield list(self._read([leaf], in_pieces))

  def _load(self, path: _trees.Path, leaf: _run.BaseLeaf) -> _restore_plan.Load:
    """Returns a leaf as what restores it has it."""
    assert leaf.place is not None
    model = _restore_plan.ModelLeaf(
        path=path,
        rel=path,
        shape=leaf.shape,
        dtype=leaf.model_dtype,
        encoding=self._encoding(leaf),
    )
    return _restore_plan.Load(model=model, stored=leaf.place.stored)

  def _of_quantized(
      self,
      leaf: _run.BaseLeaf,
      place: _places.Place,
      array: Any,
      in_pieces: Collection[str] = (),
  ) -> np.ndarray | dict[str, Any] | _pieces.Pieces:
    """Returns a leaf that the run had quantised.

    Args:
      leaf: The leaf.
      place: Where it is.
      array: As it is there: quantised, or yet to be.
      in_pieces: Paths of leaves that may come in pieces.
    """
    encoding = self._encoding(leaf)
    assert encoding is not None
    if not quant.is_quantized(array):
      array = _quantize_on_load.quantize(array, encoding).value
    for part, x in _trees.flatten(array).items():
      path = '.'.join((leaf.path, *part))
      self._check(leaf, place, _checksum_of(x), path=path)
    if self._unfused:
      return array
    change = self._changes.get(leaf.path, _fuse.Change())
    by_rows = change.by_rows and encoding.block[0] == 1 and encoding.axis > 0
    multiple, step = _pieces.piece_rows(leaf) if by_rows else (1, leaf.shape[0])

    def pieces():
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
      self._check(leaf, place, checksum.value)

    return _pieces.Pieces(
        shape=leaf.shape,
        dtype=leaf.dtype,
        row_multiple=multiple,
        pieces=pieces(),
    )

  def _read(
      self, group: Sequence[_run.BaseLeaf], in_pieces: Collection[str] = ()
  ) -> _pieces.Group:
    keys: dict[_open.Source, set[_trees.Path]] = {}
    for leaf in group:
      if leaf.place is not None:
        stored = leaf.place.stored
        some = {x.key for x in stored.parts} or {stored.key}
        keys.setdefault(leaf.place.source, set()).update(some)
    arrays = {
        (source, key): array
        for source, some in keys.items()
        for key, array in _arrays(source, some, who=self._who)
    }
    out: _pieces.Group = []
    for leaf in group:
      encoding = self._encoding(leaf)
      if leaf.place is None:
        value = _names.fill_value(tuple(leaf.path.split('.')))
        filled: Any = np.full(leaf.shape, value, leaf.dtype)
        if encoding is not None and self._unfused:
          filled = _quantize_on_load.fill(value, leaf.shape, encoding)
        out.append((leaf, filled))
        continue
      stored = leaf.place.stored
      if stored.parts:
        value = _nested(stored, arrays, leaf.place.source)
        value = self._of_quantized(leaf, leaf.place, value, in_pieces)
        out.append((leaf, value))
        continue
      array = arrays[leaf.place.source, stored.key]
      array = np.asarray(array if stored.index is None else array[stored.index])
      if encoding is not None:
        value = self._of_quantized(leaf, leaf.place, array, in_pieces)
      else:
        value = self._value(leaf, leaf.place, array)
      out.append((leaf, value))
    return out

  def _value(
      self, leaf: _run.BaseLeaf, place: _places.Place, array: np.ndarray
  ) -> np.ndarray:
    change = self._changes.get(leaf.path)
    if change is None:
      self._check(leaf, place, _checksum(leaf, array))
      return array.astype(leaf.dtype, copy=False)
    # As the run had it.
    array = array.astype(leaf.model_dtype, copy=False)
    if self._is_residual(place, change):
      new = _init_from_base.residual(
          self._run.model, leaf.path, jnp.asarray(array)
      )
      array = np.asarray(new)
    self._check(leaf, place, _checksum(leaf, array))
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
    init = getattr(self._run.model, 'init_lora_weights', 'default')
    return place.released and bool(change.branches) and _init.is_from_base(init)

  def _check(
      self,
      leaf: _run.BaseLeaf,
      place: _places.Place,
      new: str,
      *,
      path: str = '',
  ) -> None:
    """Compares the checksum of a leaf with what the run says of it.

    Args:
      leaf: The leaf.
      place: Where it is.
      new: Its checksum.
      path: Of a part of it, of codes or scales; default: the leaf's.
    """
    path = path or leaf.path
    old = self._checksums.get(path)
    if old is None or new == old:
      return
    init = getattr(self._run.model, 'init_lora_weights', 'default')
    if place.released and leaf.path in self._changes and init != 'default':
      # Another machine may round otherwise. Leaves without LoRA tell another
      # base.
      logging.warning(
          '%s: %s is not bit for bit what init_lora_weights=%r left in the run.',
          self._who,
          leaf.path,
          init,
      )
      return
    raise ValueError(
        f'{self._who}: {path} is not what LoRA was trained on (checksum'
        f' {old} in the run, {new} in {place.source.path}). Give init_transform='
        ' the checkpoint that the run started from.'
    )


def _arrays(
    source: _open.Source, keys: set[_trees.Path], *, who: str
) -> Iterator[tuple[_trees.Path, np.ndarray]]:
  """Yields arrays of a checkpoint."""
  source.check(keys, who=who)
  if isinstance(source, _hugging_face.HuggingFaceSource):
    # Mapped, not copied: they are written and forgotten.
    yield from ((key, source.weights[key].read()) for key in keys)
    return
  args = {key: ocp.RestoreArgs(restore_type=np.ndarray) for key in keys}
  yield from source.read(args).items()


def _nested(
    stored: _checkpoint_layouts.Stored,
    arrays: Mapping[Any, Any],
    source: _open.Source,
) -> dict[str, Any]:
  """Returns the quantised array whose codes and scales were read."""
  value: dict[str, Any] = {}
  for part in stored.parts:
    *scopes, name = part.path[len(stored.path) :]
    scope = value
    for key in scopes:
      scope = scope.setdefault(key, {})
    scope[name] = np.asarray(arrays[source, part.key])
  assert stored.encoding is not None
  # Some dtypes are wider in the file.
  return jax.tree.map(
      lambda x, like: x.astype(like.dtype, copy=False),
      value,
      stored.encoding.abstract(stored.shape),
  )


def _checksum_of(array: np.ndarray) -> str:
  """Returns the checksum of codes or scales."""
  checksum = _checksums.RowsChecksum(array.shape, array.dtype)
  checksum.add(0, array)
  return checksum.value


def _checksum(leaf: _run.BaseLeaf, array: np.ndarray) -> str:
  checksum = _checksums.RowsChecksum(array.shape, leaf.model_dtype)
  checksum.add(0, array)
  return checksum.value
