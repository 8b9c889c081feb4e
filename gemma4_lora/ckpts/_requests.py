"""Which leaves an `init_transform` gives a value to, known before it runs.

What it will restore need not be initialised first.
"""

import collections
import contextlib
from typing import Any

from kauldron import kd

from gemma4_lora import _trees
from gemma4_lora import variants
from gemma4_lora.ckpts import _load_lora
from gemma4_lora.ckpts import _partial_load
from gemma4_lora.ckpts import _skip_lora
from gemma4_lora.ckpts.lora import _fingerprint
from gemma4_lora.ckpts.restore import _restore
from gemma4_lora.ckpts.sources import _ahead
from gemma4_lora.ckpts.sources import _open
from gemma4_lora.host import _xla_memory
from gemma4_lora.nn.branches import _copies

# Variants with leaves that start from the base.
_FROM_BASE = dict.fromkeys(
    variant.name for variant, leaf in variants.owners() if leaf.from_base
)


class UnknownError(Exception):
  """Only running the transform would tell; says why."""


def restored(transform: Any, state: Any) -> frozenset[_trees.Path]:
  """Returns the leaves of a state that a transform replaces in any case.

  A transform may then be given `jax.ShapeDtypeStruct`s in their place.

  Args:
    transform: An `init_transform=`.
    state: Arrays or shapes, with the shardings that they are to have.

  Returns:
    Paths in the state, of base leaves.

  Raises:
    UnknownError: Only running the transform would tell.
    FileNotFoundError: There is no checkpoint.
    ValueError: The checkpoint cannot be read or does not fit the model.
  """
  requests = _requests(transform)
  if any(is_from_base(path) for path in _trees.flatten(state.params)):
    # They follow the base when it is restored, unless they were loaded before.
    if requests.keys() != {0}:
      raise UnknownError(
          'init_transform= does not restore the base first and at once, which'
          f' {", ".join(_FROM_BASE)} and modules_to_save start from'
      )
  paths: set[_trees.Path] = set()
  for request in requests.values():
    _, _, plan = _restore.prepare(state, request)
    leaves = [*(x.model for x in plan.loads), *plan.pruned]
    paths |= {part.path for x in leaves for part in x.parts.values()}
  return frozenset(paths)


def ahead(
    transform: Any, model: Any
) -> contextlib.AbstractContextManager[None]:
  """Reads the largest array of a transform's checkpoint meanwhile.

  Args:
    transform: An `init_transform=`, to be run within.
    model: Of the run. If it quantises what it restores, nothing is read: that
      goes row by row.

  Returns:
    A context. It finds no fault with the transform: that one does.
  """
  lora = _fingerprint.find_lora(model)
  try:
    request = next(iter(_requests(transform).values()))
    source = _open.open_source(request.path, step=request.step, who=request.who)
  except (UnknownError, FileNotFoundError, ValueError):
    return contextlib.nullcontext()
  if lora is not None and lora.quantize or request.ignore_restored_keys:
    return contextlib.nullcontext()
  roots = [_trees.parts(old) for old in request.new_to_old.values()]
  sizes: collections.Counter[_trees.Path] = collections.Counter()
  for path, stored in source.leaves.items():
    if any(path[: len(root)] == root for root in roots):
      sizes[stored.key] += _open.num_bytes(stored)
  key = max(sizes, key=sizes.__getitem__, default=None)
  reader = None if key is None else source.reader(key, _xla_memory.filled)
  if key is None or reader is None:
    return contextlib.nullcontext()
  return _ahead.reading(source.path, key, reader)


def is_from_base(path: _trees.Path) -> bool:
  """Whether a LoRA leaf starts from the base: a variant's own, or a copy."""
  is_own = _trees.is_lora(path) and variants.from_base(path[-1])
  return is_own or _copies.is_copy(path)


def base_of(path: _trees.Path) -> _trees.Path:
  """Returns the scope of the base leaves that such a leaf starts as."""
  return path[: path.index(_trees.LORA_KEY)]


def _requests(transform: Any) -> dict[int, _restore.Request]:
  """Returns what a transform restores of the base, by the parts' places.

  Raises:
    UnknownError: Nothing, or a part is none that we know.
  """
  requests = {}
  for i, part in enumerate(_parts(transform)):
    request = _request(part)
    if request is not None:
      requests[i] = request
    elif type(part) is not _load_lora.LoadLoRA:
      raise UnknownError(f'init_transform= has a {type(part).__name__}')
  if not requests:
    raise UnknownError('init_transform= restores no base model')
  return requests


def _parts(transform: Any) -> list[Any]:
  """Returns the transforms that a `MultiTransform` applies, in order."""
  if type(transform) is not kd.ckpts.MultiTransform:
    return [transform]
  parts = vars(transform)['_transforms'].values()
  return [y for x in parts for y in _parts(x)]


def _request(transform: Any) -> _restore.Request | None:
  """Returns what a transform restores of the base, None if nothing we know."""
  if type(transform) is _skip_lora.SkipLoRA4:
    return _skip_lora.request(transform.wrapped)
  if type(transform) is _partial_load.PartialLoad:
    return transform.request(_partial_load.PartialLoad.__name__)
  return None
