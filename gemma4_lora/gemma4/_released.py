"""Finds the row of a leaf by its path alone.

A transform sees a state and no model. The axes of a row depend only on its
path, so any released model gives them; its shape does not.
"""

import functools

from gemma4_lora import _trees
from gemma4_lora.gemma4 import _leaves
from gemma4_lora.gemma4 import _linears
from gemma4_lora.gemma4 import _rows
from gemma4_lora.gemma4 import _sizes


def row_of(path: _trees.Path) -> _linears.Linear | None:
  """Returns the row of `….lora.<projection>`, or None for unknown linears.

  Args:
    path: The model may stand deeper in the parameters.
  """
  starred = _starred(_trees.join(path))
  return next((r for k, r in _by_lora_path() if starred.endswith(k)), None)


def row_at(path: _trees.Path, num_axes: int) -> _rows.Row | None:
  """Returns the row of a base leaf, None if it has none.

  Args:
    path: Path below `params`, as `_names.canonical` spells it.
    num_axes: Length of its shape: experts have an axis more than dense MLPs.
  """
  return _by_checkpoint_path().get((_starred(_trees.join(path)), num_axes))


@functools.cache
def linears() -> tuple[_linears.Linear, ...]:
  """Returns the linears of all released models."""
  return tuple(
      row for size in _sizes.SIZES for row in _linears.linears(size.cls.config)
  )


@functools.cache
def leaves() -> tuple[_leaves.Leaf, ...]:
  """Returns the other leaves of all released models."""
  return tuple(
      row for size in _sizes.SIZES for row in _leaves.leaves(size.cls.config)
  )


@functools.cache
def paths_in_layer(*projections: str) -> frozenset[_trees.Path]:
  """Returns the paths of some rows below a layer of the text tower.

  Args:
    *projections: For example `'k'`, which is in `kv_einsum` or in `k_einsum`.
  """
  return frozenset(
      row.checkpoint_path[1:]
      for row in (*linears(), *leaves())
      if row.tower == 'text'
      and row.layer is not None
      and row.projection in projections
  )


@functools.cache
def shared_projections() -> frozenset[str]:
  """Returns the names that the text tower and another one both have: `q`, ..."""
  rows = (*linears(), *leaves())
  of_text = {row.projection for row in rows if row.tower == 'text'}
  return frozenset(
      row.projection
      for row in rows
      if row.tower != 'text' and row.projection in of_text
  )


@functools.cache
def _by_lora_path() -> tuple[tuple[str, _linears.Linear], ...]:
  """Returns `.layer_*.attn.q_einsum.lora.q` with a row, for all models."""
  rows = {}
  for row in linears():
    rows.setdefault(_starred(row.lora_path), row)
  return tuple(rows.items())


@functools.cache
def _by_checkpoint_path() -> dict[tuple[str, int], _rows.Row]:
  """Returns rows by `.layer_*.mlp.linear` and the number of axes."""
  rows: dict[tuple[str, int], _rows.Row] = {}
  for row in (*linears(), *leaves()):
    key = (_starred(_trees.join(row.checkpoint_path)), len(row.axes))
    rows.setdefault(key, row)
  return rows


def _starred(path: str) -> str:
  # A dot behind, as `starred` looks for whole segments.
  return '.' + _rows.starred(f'{path}.').removesuffix('.')
