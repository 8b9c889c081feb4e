"""The leaves of a fused model, one after the other: never two models in memory.

A leaf is read, what LoRA adds is added, and it is handed on. Small leaves are
read together, as reading one by one is slow.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import gc
import math
from typing import Any

from absl import logging
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from gemma4_lora import _gemma4
from gemma4_lora.ckpts import _checksums
from gemma4_lora.ckpts import _fingerprint
from gemma4_lora.ckpts import _hf_source
from gemma4_lora.ckpts import _layouts
from gemma4_lora.ckpts import _run
from gemma4_lora.ckpts import _sources
from gemma4_lora.ckpts import _trees
from gemma4_lora.nn import _fuse
from gemma4_lora.nn import _init_from_base

# What is read at once of small leaves; a larger leaf is read alone.
_GROUP_BYTES = 2**26
# Of a leaf of many experts or layers, what is fused at once.
_BLOCK_BYTES = 2**26

Group = list[tuple[_run.BaseLeaf, np.ndarray]]


class FusedLeaves:
  """Reads the leaves of a run's base and fuses its LoRA into them."""

  def __init__(self, run: _run.Run, *, who: str, unfused: bool = False):
    """Creates it; reads nothing.

    Args:
      run: The run.
      who: The command, for messages.
      unfused: Whether to leave LoRA out: the base as the run had it.

    Raises:
      ValueError: Its LoRA is not the model's.
    """
    self._run, self._who, self._unfused = run, who, unfused
    self._changes: Mapping[str, _fuse.Change] = {}
    if run.lora:
      self._changes = _changes(run, who=who)
    self._checksums: Mapping[str, str] = {}
    if run.fingerprint is not None:
      self._checksums = run.fingerprint['base'].get('checksums', {})

  @property
  def num_changed(self) -> int:
    """How many leaves LoRA changes."""
    return len(self._changes)

  def read(self, leaves: Sequence[_run.BaseLeaf]) -> Iterator[Group]:
    """Yields leaves with their values, small ones together.

    Args:
      leaves: Some of the run's.

    Raises:
      ValueError: A leaf is not what LoRA was trained on.
    """
    for group in _groups(leaves):
      large = sum(map(_size, group)) >= _GROUP_BYTES
      yield list(self._read(group))
      if large:
        gc.collect()  # Orbax keeps what it read in cycles of references.

  def _read(self, group: Sequence[_run.BaseLeaf]) -> Group:
    keys: dict[_sources.Source, set[_trees.Path]] = {}
    for leaf in group:
      if leaf.place is not None:
        keys.setdefault(leaf.place.source, set()).add(leaf.place.stored.key)
    arrays = {
        (source, key): array
        for source, some in keys.items()
        for key, array in _arrays(source, some, who=self._who)
    }
    out = []
    for leaf in group:
      if leaf.place is None:
        value = _layouts.fill_value(tuple(leaf.path.split('.')))
        out.append((leaf, np.full(leaf.shape, value, leaf.dtype)))
        continue
      stored = leaf.place.stored
      array = arrays[leaf.place.source, stored.key]
      array = np.asarray(array if stored.index is None else array[stored.index])
      out.append((leaf, self._value(leaf, leaf.place, array)))
    return out

  def _value(
      self, leaf: _run.BaseLeaf, place: _run.Place, array: np.ndarray
  ) -> np.ndarray:
    change = self._changes.get(leaf.path)
    if change is None:
      self._check(leaf, place, array)
      return array.astype(leaf.dtype, copy=False)
    # As the run had it.
    array = array.astype(leaf.model_dtype, copy=False)
    if place.released and change.branches:
      # Of all other starts, the same array.
      new = _init_from_base.residual(
          self._run.model, leaf.path, jnp.asarray(array)
      )
      array = np.asarray(new)
    self._check(leaf, place, array)
    if self._unfused:
      return array
    array = array.astype(leaf.dtype, copy=False)
    blocks = list(_blocks(change, array))
    if len(blocks) == 1:
      return np.asarray(change.fuse(jnp.asarray(array)))
    array = array if array.flags.writeable else array.copy()
    for part, block in blocks:
      array[part] = np.asarray(block.fuse(jnp.asarray(array[part])))
    return array

  def _check(
      self, leaf: _run.BaseLeaf, place: _run.Place, array: np.ndarray
  ) -> None:
    """Compares a leaf with what the run says of it."""
    old = self._checksums.get(leaf.path)
    if old is None:
      return
    new = _checksums.checksum_as(array, leaf.model_dtype)
    if new == old:
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
        f'{self._who}: {leaf.path} is not what LoRA was trained on (checksum'
        f' {old} in the run, {new} in {place.source.path}). Give init_transform='
        ' the checkpoint that the run started from.'
    )


def _arrays(
    source: _sources.Source, keys: set[_trees.Path], *, who: str
) -> Iterator[tuple[_trees.Path, np.ndarray]]:
  """Yields arrays of a checkpoint."""
  source.check(keys, who=who)
  if isinstance(source, _hf_source.HuggingFaceSource):
    # Mapped, not copied: they are written and forgotten.
    yield from ((key, source.weights[key].read()) for key in keys)
    return
  args = {key: ocp.RestoreArgs(restore_type=np.ndarray) for key in keys}
  yield from source.read(args).items()


def _changes(run: _run.Run, *, who: str) -> dict[str, _fuse.Change]:
  """Returns what LoRA does to each leaf."""
  _fuse.check_lora(run.model, run.lora, who=who)
  check_settings(run.model, run.lora, run.fingerprint, where=run.where, who=who)
  base = _gemma4.abstract_params(run.model.model)
  changes = _fuse.changes_of(run.model, base, run.lora)
  shapes = {linear.row.lora_path: linear for linear in run.model.adapted}
  for path, linear in shapes.items():
    leaves = _trees.get_at(run.lora, tuple(path.split('.')))
    for name, shape in zip('ab', linear.shapes, strict=True):
      if leaves[name].shape != shape:
        raise ValueError(
            f'{who}: {path}.{name} is {leaves[name].shape} in the run and'
            f' {shape} in the config. Set rank= and the model back to those of'
            ' the run.'
        )
  there = {leaf.path for leaf in run.leaves if leaf.place is not None}
  lacking = [path for path in changes if path not in there]
  if lacking:
    raise ValueError(
        f'{who}: LoRA changes {len(lacking)} leaves that the base does not have:'
        f' {", ".join(lacking[:3])}. It is in {run.where}.'
    )
  return changes


def check_settings(
    model: Any,
    lora: Mapping[str, Any],
    saved: _fingerprint.Fingerprint | None,
    *,
    where: str,
    who: str,
) -> None:
  """Raises where the config has other settings of LoRA than the run had.

  Args:
    model: Of the config.
    lora: The run's LoRA leaves.
    saved: The run's fingerprint, if it has one.
    where: The run, for messages.
    who: The command, for messages.
  """
  if saved is None:
    return
  params = _trees.merge(_gemma4.abstract_params(model.model), lora)
  current = _fingerprint.describe(model, params, content=False)
  # gemma makes leaves of towers only when init is given their input.
  names = saved['base']['leaves']
  current['base']['leaves'] = {
      name: spec
      for name, spec in current['base']['leaves'].items()
      if name in names or not _layouts.tower_of(tuple(name.split('.')))
  }
  _fingerprint.check(saved, current, who=who, where=where)


def _groups(
    leaves: Sequence[_run.BaseLeaf],
) -> Iterator[list[_run.BaseLeaf]]:
  """Yields leaves that are read together, arrays of several never apart."""
  by_array: dict[Any, list[_run.BaseLeaf]] = {}
  for leaf in leaves:
    key: Any = leaf.path
    if leaf.place is not None:
      key = (leaf.place.source, leaf.place.stored.key)
    by_array.setdefault(key, []).append(leaf)
  group, total = [], 0
  for same in by_array.values():
    size = sum(map(_size, same))
    if group and total + size > _GROUP_BYTES:
      yield group
      group, total = [], 0
    group += same
    total += size
  if group:
    yield group


def _size(leaf: _run.BaseLeaf) -> int:
  return math.prod(leaf.shape) * leaf.dtype.itemsize


def _blocks(
    change: _fuse.Change, array: np.ndarray
) -> Iterator[tuple[slice, _fuse.Change]]:
  """Yields pieces of a leaf whose first axis is experts or layers.

  What fusing needs in float32 is then a piece.
  """
  count = len(array) if array.ndim else 1
  whole = bool(change.copies) or any(
      0 not in view.row.batch_axes for view in change.branches
  )
  step = max(1, count * _BLOCK_BYTES // max(array.nbytes, 1))
  if whole or step >= count:
    yield slice(None), change
    return
  for start in range(0, count, step):
    part = slice(start, min(start + step, count))
    yield part, dataclasses.replace(
        change,
        branches=tuple(
            dataclasses.replace(
                view,
                lora_a=view.lora_a[part],
                lora_b=view.lora_b[part],
                lora_m=None if view.lora_m is None else view.lora_m[part],
            )
            for view in change.branches
        ),
    )
