"""DoRA's magnitudes start at the norms of the base, and so follow a restore.

`model.init` sets them to the norms of its random base weights. Once a transform
has put others in their place, the magnitudes must be the norms of those, or
step 0 would not be the released model. Of a quantised base, they are the norms of
what the forward pass sees: of the dequantised one.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp

from gemma4_lora import _trees
from gemma4_lora import variants
from gemma4_lora.gemma4 import _linears
from gemma4_lora.gemma4 import _released
from gemma4_lora.quant import _arrays

# Relative: float32 sums in another order. What was trained on another base is
# farther away.
_TOLERANCE = 1e-4


def following(transform: Callable[[Any], Any], state: Any) -> Any:
  """Applies what restores the base, then sets the magnitudes to its norms.

  Magnitudes that were trained, and loaded before the base, stay.

  Args:
    transform: From a state to a state.
    state: The state.

  Returns:
    A state of the same structure, shapes, dtypes and shardings.

  Raises:
    ValueError: A magnitude stands beside no linear that LoRA adapts.
  """
  paths = _fresh(state.params)
  state = transform(state)
  params = _follow(state.params, paths)
  return dataclasses.replace(state, params=params)


def _fresh(params: Any) -> frozenset[_trees.Path]:
  """Returns the magnitudes that are still where `model.init` put them.

  Those of a base without values are. Others were trained, and loaded before
  the base: they must stay.

  Args:
    params: Nested; before the base is restored.
  """
  rows = _rows_of(params)
  known = {
      path: row
      for path, row in rows.items()
      if not _is_abstract(_weight(params, path, row))
  }
  norms = _norms_of(params, known)
  is_near = _near({path: _trees.get_at(params, path) for path in known}, norms)
  return frozenset(path for path in rows if is_near.get(path, True))


def _follow(params: Any, paths: frozenset[_trees.Path]) -> Any:
  """Sets magnitudes to the norms of the base.

  Args:
    params: Nested; after the base was restored.
    paths: Which, from `_fresh`.

  Returns:
    Parameters of the same structure, shapes, dtypes and shardings.
  """
  rows = _rows_of(params)
  if not rows:
    return params
  norms = _norms_of(
      params, {path: rows[path] for path in rows if path in paths}
  )
  for path, norm in norms.items():
    old = _trees.get_at(params, path)
    new = jax.device_put(norm.astype(old.dtype), old.sharding)
    params = _trees.replace_at(params, path, new)
  logging.info(
      'DoRA: %d magnitudes set to the norms of the restored base, %d kept as'
      ' loaded.',
      len(norms),
      len(rows) - len(norms),
  )
  return params


def _rows_of(params: Any) -> dict[_trees.Path, _linears.Linear]:
  """Returns the row of each magnitude by its path."""
  rows = {}
  for path in _trees.flatten(params):
    if _trees.is_lora(path) and variants.from_base(path[-1]):
      row = _released.row_of(path[:-1])
      if row is None:
        raise ValueError(
            f'{_trees.join(path)} is a magnitude of DoRA on no linear of Gemma'
            ' 4 that g4.nn.LoRA adapts.'
        )
      rows[path] = row
  return rows


def _weight(params: Any, path: _trees.Path, row: _linears.Linear) -> Any:
  """Returns the base weight of a magnitude at `….lora.<projection>.m`.

  As it is held: all of them dequantised would be the model in full width.
  """
  return _trees.get_at(params, (*path[:-3], row.path.rpartition('.')[2]))


def _norms_of(
    params: Any, rows: Mapping[_trees.Path, _linears.Linear]
) -> dict[_trees.Path, jax.Array]:
  weights = tuple(_weight(params, path, row) for path, row in rows.items())
  dtype = _dtype(params) if any(map(_arrays.is_quantized, weights)) else None
  starts = tuple(map(_start, rows))
  norms = _norms(weights, tuple(rows.values()), starts, dtype)
  return dict(zip(rows, norms, strict=True))


def _is_abstract(weight: Any) -> bool:
  """Whether a weight, quantised or not, has no value."""
  leaves = jax.tree.leaves(weight)
  return any(isinstance(x, jax.ShapeDtypeStruct) for x in leaves)


def _dtype(params: Any) -> Any:
  """Returns that of the model: gemma casts to it all that it makes."""
  return _trees.get_at(params, ('final_norm', 'scale')).dtype


def _start(path: _trees.Path) -> Any:
  """Returns what makes a leaf from its base weight."""
  owner = variants.owner(path[-1])
  assert owner is not None
  return owner[1].start


@functools.partial(jax.jit, static_argnames=('rows', 'starts', 'dtype'))
def _norms(
    weights: tuple[Any, ...],
    rows: tuple[_linears.Linear, ...],
    starts: tuple[Any, ...],
    dtype: Any,
) -> list[jax.Array]:
  return [
      start(_arrays.dense(w, dtype), row)
      for w, row, start in zip(weights, rows, starts, strict=True)
  ]


def _near(
    magnitudes: Mapping[_trees.Path, jax.Array],
    norms: Mapping[_trees.Path, jax.Array],
) -> dict[_trees.Path, bool]:
  """Returns where magnitudes are norms, up to rounding."""

  @jax.jit
  def near(ms, ns):
    return [
        jnp.all(jnp.abs(m - n) <= _TOLERANCE * n)
        for m, n in zip(ms, ns, strict=True)
    ]

  flags = near(list(magnitudes.values()), list(norms.values()))
  return {p: bool(x) for p, x in zip(magnitudes, flags, strict=True)}
