"""Finds what an `init_transform=` restores: the only walk over its steps.

Classes that we know are read for their settings, by their exact type, so that
the base can be read leaf by leaf, or need not be initialised first. A subclass
may do anything, and so may a transform of the user: its result is known only by
calling it.
"""

import collections
from collections.abc import Iterator
import contextlib
import dataclasses
from typing import Any

from gemma import gm
from kauldron import kd

from gemma4_lora import _trees
from gemma4_lora import variants
from gemma4_lora.ckpts import _load_lora
from gemma4_lora.ckpts import _loaders
from gemma4_lora.ckpts import _partial_load
from gemma4_lora.ckpts import _skip_lora
from gemma4_lora.ckpts.lora import _fingerprint
from gemma4_lora.ckpts.restore import _followers
from gemma4_lora.ckpts.restore import _prepare
from gemma4_lora.ckpts.sources import _ahead
from gemma4_lora.ckpts.sources import _open
from gemma4_lora.host import _xla_memory

# Known not to change the base.
_NOT_OF_BASE = (_load_lora.LoadLoRA, kd.ckpts.NoopTransform)
_OURS = (_load_lora.LoadLoRA, _partial_load.PartialLoad)

# Variants with leaves that start from the base.
_FROM_BASE = dict.fromkeys(
    variant.name for variant, leaf in variants.owners() if leaf.from_base
)


class UnknownError(Exception):
  """The result is known only by running the transform; says why."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
  """A transform of an `init_transform=`, without what is around it.

  Attributes:
    transform: The transform.
    in_skip: Whether it is within a `SkipLoRA4` or a `gm.ckpts.SkipLoRA`.
    is_ours: Whether the transforms around it restore its `request` by our own
      code, or only call it.
  """

  transform: Any
  in_skip: bool
  is_ours: bool

  @property
  def name(self) -> str:
    return type(self.transform).__name__

  @property
  def is_known(self) -> bool:
    """Whether its settings determine its result. If not, it is called."""
    is_loader = _loaders.is_known(self.transform)
    return is_loader or type(self.transform) in _NOT_OF_BASE

  @property
  def takes_shapes(self) -> bool:
    """Whether it fills `jax.ShapeDtypeStruct`s, with their shardings."""
    is_ours = type(self.transform) in _OURS
    is_read = self.in_skip and _loaders.is_known(self.transform)
    return self.is_ours and (is_ours or is_read)

  @property
  def request(self) -> _prepare.Request | None:
    """Its restore of the base; None if there is none, or if it is unknown.

    Raises:
      ValueError: It cannot be restored under LoRA.
    """
    if type(self.transform) is _partial_load.PartialLoad and not self.in_skip:
      return self.transform.request(self.name)
    return _loaders.request(self.transform)


def steps(transform: Any) -> tuple[Step, ...]:
  """Returns the steps of an `init_transform=`, in the order in which they run.

  Args:
    transform: An `init_transform=`. `kd.ckpts.MultiTransform`,
      `g4.ckpts.SkipLoRA4` and `gm.ckpts.SkipLoRA` stand for what is in them.
  """
  return tuple(_walk(transform))


def unknown(transform: Any) -> tuple[str, ...]:
  """Returns the names of the classes that must be called, in order."""
  return tuple(x.name for x in steps(transform) if not x.is_known)


def base_request(transform: Any) -> _prepare.Request | None:
  """Returns the source of the base; None if the transform restores none.

  Args:
    transform: An `init_transform=` without unknown steps.

  Raises:
    ValueError: Several steps restore a base, or one cannot be restored under
      LoRA.
  """
  found = [x.request for x in steps(transform) if x.request is not None]
  if len(found) > 1:
    raise ValueError(
        f'init_transform= restores a base from {len(found)} checkpoints:'
        f' {[str(x.path) for x in found]}. Keep one.'
    )
  return found[0] if found else None


def restored(transform: Any, state: Any) -> frozenset[_trees.Path]:
  """Returns the leaves of a state that a transform always replaces.

  A transform may then be given `jax.ShapeDtypeStruct`s in their place.

  Args:
    transform: An `init_transform=`.
    state: Arrays or shapes, with the shardings to use.

  Returns:
    Paths in the state, of base leaves.

  Raises:
    UnknownError: The result is known only by running the transform.
    FileNotFoundError: There is no checkpoint.
    ValueError: The checkpoint cannot be read or does not fit the model.
  """
  requests = _into_shapes(transform)
  if any(_followers.is_follower(path) for path in _trees.flatten(state.params)):
    # They follow the base when it is restored, unless they were loaded before.
    if requests.keys() != {0}:
      raise UnknownError(
          'init_transform= does not restore the base first and at once, which'
          f' {", ".join(_FROM_BASE)} and modules_to_save start from'
      )
  paths: set[_trees.Path] = set()
  for request in requests.values():
    _, _, plan = _prepare.prepare(state, request)
    leaves = [*(x.model for x in plan.loads), *plan.pruned]
    paths |= {part.path for x in leaves for part in x.parts.values()}
  return frozenset(paths)


def check_known(transform: Any) -> None:
  """Raises UnknownError unless a transform is known to restore a base."""
  if names := unknown(transform):
    raise UnknownError(f'init_transform= has a {names[0]}')
  if not any(_loaders.is_known(x.transform) for x in steps(transform)):
    raise UnknownError('init_transform= restores no base model')


def ahead(
    transform: Any, model: Any
) -> contextlib.AbstractContextManager[None]:
  """Reads the largest array of a transform's checkpoint in the background.

  Args:
    transform: An `init_transform=`, to be run within.
    model: The model. If it quantises the base, nothing is read, as that is done
    row by row.

  Returns:
    A context. Errors are raised later, by the transform itself.
  """
  lora = _fingerprint.find_lora(model)
  try:
    request = next(iter(_into_shapes(transform).values()))
    source = _open.open_source(
        request.path, step=request.step, who=request.who, nan=request.nan
    )
  except (UnknownError, FileNotFoundError, ValueError):
    return contextlib.nullcontext()
  if lora is not None and lora.quantize or request.ignore_restored_keys:
    return contextlib.nullcontext()
  roots = [_trees.segments(old) for old in request.new_to_old.values()]
  sizes: collections.Counter[_trees.Path] = collections.Counter()
  for path, stored in source.leaves.items():
    if any(path[: len(root)] == root for root in roots):
      sizes[stored.key] += _open.num_bytes(stored)
  key = max(sizes, key=sizes.__getitem__, default=None)
  reader = None if key is None else source.reader(key, _xla_memory.filled)
  if key is None or reader is None:
    return contextlib.nullcontext()
  return _ahead.reading(source.path, key, reader)


def _walk(
    transform: Any, *, in_skip: bool = False, is_ours: bool = True
) -> Iterator[Step]:
  """Yields the steps of a transform; arguments as the fields of `Step`."""
  kind = type(transform)
  if kind is kd.ckpts.MultiTransform:
    inner = vars(transform)['_transforms'].values()
    is_ours = is_ours and not in_skip
  elif kind in (_skip_lora.SkipLoRA4, gm.ckpts.SkipLoRA):
    inner, in_skip = [transform.wrapped], True
    is_ours = is_ours and kind is _skip_lora.SkipLoRA4
  else:
    yield Step(transform=transform, in_skip=in_skip, is_ours=is_ours)
    return
  for x in inner:
    yield from _walk(x, in_skip=in_skip, is_ours=is_ours)


def _into_shapes(transform: Any) -> dict[int, _prepare.Request]:
  """Returns the requests of the steps that restore into shapes.

  Raises:
    UnknownError: There are none, or a step needs arrays.
  """
  requests = {}
  for i, one in enumerate(steps(transform)):
    if not one.takes_shapes:
      raise UnknownError(f'init_transform= has a {one.name}')
    if one.request is not None:
      requests[i] = one.request
  if not requests:
    raise UnknownError('init_transform= restores no base model')
  return requests
