"""Sets LoRA leaves that start from the base again when it is restored.

Some LoRA variants have leaves that start from the base, such as DoRA's
magnitudes, which start at its norms. The copies of `modules_to_save` start as
the base itself. `model.init` takes them from its random base. Once a transform
has restored other weights, they must be set again; otherwise step 0 would not
be the released model:

```python
before = _followers.fresh(state)
state = ...  # Restores the base.
state = _followers.follow(state, before)
```

If the base is quantised, they start from the dequantised base, as the forward
pass sees it.
"""

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
from gemma4_lora.gemma4 import _weights
from gemma4_lora.nn.branches import _copies
from gemma4_lora.quant import _arrays

# Relative: float32 sums in another order. Leaves that were trained are farther
# away.
_TOLERANCE = 1e-4


def is_follower(path: _trees.Path) -> bool:
  """Whether a LoRA leaf starts from the base: a variant's own, or a copy."""
  return _is_own(path) or _copies.is_copy(path)


def base_of(path: _trees.Path) -> _trees.Path:
  """Returns the scope of the base leaves that such a leaf starts as."""
  return path[: path.index(_trees.LORA_KEY)]


def fresh(state: Any) -> frozenset[_trees.Path]:
  """Returns the followers that are still where `model.init` put them.

  All followers count as fresh if the base has no values yet. Others were
  trained and loaded before the base: they must stay.

  Args:
    state: The state before the base is restored.

  Raises:
    ValueError: A follower has no base leaf to start from.
  """
  paths = [p for p in _trees.flatten(state.params) if _copies.is_copy(p)]
  copies = frozenset(p for p in paths if _is_fresh_copy(state.params, p))
  return _fresh_own(state.params) | copies


def follow(state: Any, before: frozenset[_trees.Path]) -> Any:
  """Sets followers from the base.

  Args:
    state: After the base was restored.
    before: The result of `fresh`.

  Returns:
    A state of the same structure, shapes, dtypes and shardings.
  """
  params = _follow_by_copies(state.params, before)
  params = _follow_by_own(params, before)
  return dataclasses.replace(state, params=params)


# -------------------------- Leaves of a variant ----------------------------


def _fresh_own(params: Any) -> frozenset[_trees.Path]:
  rows = _rows_of(params)
  known = {
      path: row
      for path, row in rows.items()
      if not _is_abstract(_weight(params, path, row))
  }
  starts = _starts_of(params, known)
  is_near = _near({path: _trees.get_at(params, path) for path in known}, starts)
  return frozenset(path for path in rows if is_near.get(path, True))


def _follow_by_own(params: Any, before: frozenset[_trees.Path]) -> Any:
  rows = _rows_of(params)
  if not rows:
    return params
  starts = _starts_of(
      params, {path: rows[path] for path in rows if path in before}
  )
  for path, start in starts.items():
    old = _trees.get_at(params, path)
    new = jax.device_put(start.astype(old.dtype), old.sharding)
    params = _trees.replace_at(params, path, new)
  variant, leaf = _owner(next(iter(rows)))
  logging.info(
      '%s: %d %s set from the restored base, %d kept as loaded.',
      variant.name,
      len(starts),
      leaf.plural,
      len(rows) - len(starts),
  )
  return params


def _is_own(path: _trees.Path) -> bool:
  return _trees.is_lora(path) and variants.from_base(path[-1])


def _owner(path: _trees.Path) -> tuple[variants.Variant, variants.OwnLeaf]:
  owner = variants.owner(path[-1])
  assert owner is not None
  return owner


def _rows_of(params: Any) -> dict[_trees.Path, _linears.Linear]:
  """Returns the row of each leaf by its path."""
  rows = {}
  for path in filter(_is_own, _trees.flatten(params)):
    row = _released.row_of(path[:-1])
    if row is None:
      variant, leaf = _owner(path)
      raise ValueError(
          f'{_trees.join(path)} is a {leaf.plural.removesuffix("s")} of'
          f' {variant.name} on no linear of Gemma 4 that g4.nn.LoRA adapts.'
      )
    rows[path] = row
  return rows


def _weight(params: Any, path: _trees.Path, row: _linears.Linear) -> Any:
  """Returns the base weight of a leaf at `….lora.<projection>.<name>`.

  Not dequantised: all of them together would be the whole model.
  """
  return _trees.get_at(params, (*path[:-3], row.path.rpartition('.')[2]))


def _starts_of(
    params: Any, rows: Mapping[_trees.Path, _linears.Linear]
) -> dict[_trees.Path, jax.Array]:
  """Returns the start values of leaves, given the base."""
  weights = tuple(_weight(params, path, row) for path, row in rows.items())
  dtype = _dtype(params) if any(map(_arrays.is_quantized, weights)) else None
  makers = tuple(_owner(path)[1].start for path in rows)
  starts = _started(weights, tuple(rows.values()), makers, dtype)
  return dict(zip(rows, starts, strict=True))


def _is_abstract(weight: Any) -> bool:
  """Whether a weight, quantised or not, has no value."""
  leaves = jax.tree.leaves(weight)
  return any(isinstance(x, jax.ShapeDtypeStruct) for x in leaves)


def _dtype(params: Any) -> Any:
  """Returns the model's dtype, to which gemma casts all parameters."""
  return _trees.get_at(params, ('final_norm', 'scale')).dtype


@functools.partial(jax.jit, static_argnames=('rows', 'makers', 'dtype'))
def _started(
    weights: tuple[Any, ...],
    rows: tuple[_linears.Linear, ...],
    makers: tuple[Any, ...],
    dtype: Any,
) -> list[jax.Array]:
  return [
      make(_arrays.dense(weight, dtype), row)
      for weight, row, make in zip(weights, rows, makers, strict=True)
  ]


def _near(
    leaves: Mapping[_trees.Path, jax.Array],
    starts: Mapping[_trees.Path, jax.Array],
) -> dict[_trees.Path, bool]:
  """Returns which leaves still have their start values, up to rounding."""

  @jax.jit
  def near(xs, ys):
    return [
        jnp.all(jnp.abs(x - y) <= _TOLERANCE * jnp.abs(y))
        for x, y in zip(xs, ys, strict=True)
    ]

  flags = near(list(leaves.values()), list(starts.values()))
  return {p: bool(x) for p, x in zip(leaves, flags, strict=True)}


# ------------------------ Copies of modules_to_save ------------------------


def _is_fresh_copy(params: Any, path: _trees.Path) -> bool:
  """Whether a copy is still what `model.init` made: the base's own values."""
  base = _copied(params, path)
  if isinstance(base, jax.ShapeDtypeStruct):
    return True  # A base without values yet.
  copy = _trees.get_at(params, path)
  # XLA drops a pair of casts: in a compiled `model.init`, the copy has values
  # that were never rounded to the base's dtype.
  return bool(jnp.all(copy.astype(base.dtype) == base))


def _follow_by_copies(params: Any, before: frozenset[_trees.Path]) -> Any:
  paths = [p for p in _trees.flatten(params) if _copies.is_copy(p)]
  if not paths:
    return params
  to_set = [path for path in paths if path in before]
  for path in to_set:
    old = _trees.get_at(params, path)
    new = _copied(params, path).astype(old.dtype)
    # A new buffer: a step may overwrite the base's own.
    new = jax.device_put(jnp.copy(new), old.sharding)
    params = _trees.replace_at(params, path, new)
  logging.info(
      'modules_to_save: %d copies set to the restored base, %d kept as loaded.',
      len(to_set),
      len(paths) - len(to_set),
  )
  return params


def _copied(params: Any, path: _trees.Path) -> Any:
  """Returns the row that a copy belongs to."""
  *scope, key, name = path
  if key == _trees.LORA_KEY:  # `final_norm.lora.scale`
    return _trees.get_at(params, (*scope, name))
  row = _released.row_of(path[:-1])  # `layer_0.attn.kv_einsum.lora.v.w`
  if row is None:
    raise ValueError(
        f'{_trees.join(path)} is a copy of no linear of Gemma 4 that'
        ' g4.nn.LoRA knows.'
    )
  weight = _trees.get_at(params, (*path[:-3], row.path.rpartition('.')[2]))
  return _weights.part(weight, row)
