"""Leaves of a checkpoint that are codes and scales of one quantised array."""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gemma4_lora import _trees
from gemma4_lora.ckpts.sources import _checkpoint_layouts
from gemma4_lora.quant import _arrays
from gemma4_lora.quant import _format
from gemma4_lora.quant import _formats


def group(
    leaves: Iterable[_checkpoint_layouts.Stored], *, who: str
) -> tuple[_checkpoint_layouts.Stored, ...]:
  """Returns leaves with codes and scales of one array as one leaf.

  Args:
    leaves: The leaves of a checkpoint, each one array.
    who: The transform that asks, for messages.

  Raises:
    ValueError: Codes and scales have no known format.
  """
  by_path = {x.path: x for x in leaves}
  grouped: dict[_trees.Path, _checkpoint_layouts.Stored] = {}
  for path in by_path:
    if not _format.is_codes(path[-1]) or not _has_scales(by_path, path[:-1]):
      continue
    # Scales that are quantised in turn have codes too.
    if any(path[:i] in grouped for i in range(len(path))):
      continue
    node = path[:-1]
    parts = tuple(x for p, x in by_path.items() if p[: len(node)] == node)
    grouped = {p: x for p, x in grouped.items() if p[: len(node)] != node}
    grouped[node] = _of_parts(node, parts, who=who)
  taken = {part.path for x in grouped.values() for part in x.parts}
  rest = tuple(x for p, x in by_path.items() if p not in taken)
  return (*rest, *grouped.values())


def _has_scales(paths: Iterable[_trees.Path], node: _trees.Path) -> bool:
  return any(p[: len(node) + 1] == (*node, _format.SCALES) for p in paths)


def _of_parts(
    node: _trees.Path, parts: Sequence[_checkpoint_layouts.Stored], *, who: str
) -> _checkpoint_layouts.Stored:
  shapes: dict[str, Any] = {}
  for x in parts:
    *scopes, name = x.path[len(node) :]
    scope = shapes
    for key in scopes:
      scope = scope.setdefault(key, {})
    dtype = _formats.held_dtype(name, x.dtype)
    scope[name] = jax.ShapeDtypeStruct(x.shape, dtype)
  try:
    encoding, codes = _arrays.encoding_of(shapes), _arrays.codes_of(shapes)
    fits = _flat(encoding.abstract(codes.shape)) == _flat(shapes)
  except (ValueError, KeyError, AttributeError, ZeroDivisionError) as e:
    raise ValueError(
        f'{who}: {_trees.join(node)} of the checkpoint is quantised in a format'
        f' that is not known: {_flat(shapes)}. {e}'
    ) from e
  if not fits:
    raise ValueError(
        f'{who}: {_trees.join(node)} of the checkpoint is quantised in a format'
        f' that is not known: {_flat(shapes)}.'
    )
  return _checkpoint_layouts.Stored(
      path=node,
      shape=codes.shape,
      dtype=np.dtype(codes.dtype),
      key=node,
      encoding=encoding,
      parts=tuple(parts),
  )


def _flat(tree: Mapping[str, Any]) -> dict[str, str]:
  return {
      _trees.join(path): f'{jnp.dtype(x.dtype).name}{list(x.shape)}'
      for path, x in sorted(_trees.flatten(tree).items())
  }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quality:
  """The quantisation result of an array.

  Attributes:
    encoding: How it is quantised.
    error: Norm of the difference over the norm of the array, both in the dtype
      of the file.
    is_exact: Whether there is no difference.
  """

  encoding: _format.Encoding
  error: float
  is_exact: bool


def report(made: Mapping[_trees.Path, Quality]) -> str:
  """Returns a log line: what was quantised, and the error."""
  count: dict[str, int] = {}
  for x in made.values():
    name = x.encoding.constructor.removeprefix('g4.quant.')
    count[name] = count.get(name, 0) + 1
  formats = ', '.join(f'{n} as {name}' for name, n in count.items())
  grids: dict[str, list[bool]] = {}
  for x in made.values():
    if x.encoding.format.has_grid:
      grids.setdefault(x.encoding.kind, []).append(x.is_exact)
  on_grid = ''.join(
      f', {sum(exact)} of {len(exact)} {kind} without loss (on the {kind} grid)'
      for kind, exact in grids.items()
  )
  worst = max(made, key=lambda path: made[path].error)
  return (
      f'quantised {len(made)} leaves ({formats}){on_grid}; largest relative'
      f' error {made[worst].error:.4f} ({_trees.join(worst)})'
  )


def argument(encodings: Iterable[_format.Encoding | None]) -> str:
  """Returns the `quantize=` that fits the encodings."""
  count: dict[str, int] = {}
  for encoding in encodings:
    if encoding is None:
      continue
    name = encoding.constructor
    count[name] = count.get(name, 0) + 1
  # An input that is shorter than a group is one group.
  common: dict[str, str] = {}
  for name in sorted(count, key=count.__getitem__, reverse=True):
    common.setdefault(name.partition('(')[0], name)
  names = list(common.values())
  if len(names) == 1:
    return f'quantize={names[0]}'
  return f'quantize=[{", ".join(names)}], each with what it selects'
