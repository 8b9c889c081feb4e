"""Where a step's arrays stand, for the loops that its model runs.

Under FSDP, devices share both the batch and the weights. The compiler then has
to choose for each product which of the two to move. Among the layers of a loop
it moves activations, from device to device and back, and sums up what each
made of its part of a weight: more bytes than the weights have, by far. So where
the batch stands is said of each layer's input, and that a weight comes together
when it is its turn of each layer's weights.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import contextvars
import dataclasses
import functools
import math
from typing import Any

import jax
from kauldron import kd

_UNCONSTRAINED = jax.sharding.PartitionSpec.UNCONSTRAINED


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
  """Of the arrays of one step.

  Attributes:
    batch: Of the batch, by its first axis.
    gathered: Of weights that share axes of the mesh with the batch, without
      these axes, by their dotted path.
  """

  batch: jax.sharding.NamedSharding
  gathered: Mapping[str, jax.sharding.NamedSharding]

  @functools.cached_property
  def key(self) -> str:
    """Says, within this process, all that differs from other placements."""
    return str(hash((self.batch, tuple(self.gathered.items()))))

  @property
  def num_shards(self) -> int:
    """How many shards the batch is in."""
    axes = _axes(self.batch.spec[0])
    return math.prod(self.batch.mesh.shape[axis] for axis in axes)

  def of_batch(self, x: jax.Array) -> jax.Array:
    """Returns `x`, `[B, ...]`, with its examples where the batch's are."""
    spec = jax.sharding.PartitionSpec(
        self.batch.spec[0], *[_UNCONSTRAINED] * (x.ndim - 1)
    )
    return jax.lax.with_sharding_constraint(
        x, jax.sharding.NamedSharding(self.batch.mesh, spec)
    )

  def together(self, params: Any, *, prefix: str) -> Any:
    """Returns parameters, each with all that the devices of the batch hold.

    Args:
      params: Nested dicts of arrays.
      prefix: Path of `params` in the model's.
    """

    def gather(path, x):
      sharding = self.gathered.get(
          '.'.join([prefix, *(key.key for key in path)])
      )
      if sharding is None:
        return x
      return jax.lax.with_sharding_constraint(x, sharding)

    return jax.tree_util.tree_map_with_path(gather, params)


_current: contextvars.ContextVar[Placement | None] = contextvars.ContextVar(
    'placement', default=None
)


def current() -> Placement | None:
  """Returns that of the step that is traced, None outside of one."""
  return _current.get()


@contextlib.contextmanager
def within(placement: Placement | None) -> Iterator[None]:
  """What is traced belongs to a step with this placement."""
  token = _current.set(placement)
  try:
    yield
  finally:
    _current.reset(token)


def of_step(
    sharding: kd.sharding.ShardingStrategy, *, params: Any, batch: Any
) -> Placement | None:
  """Returns the placement of a step.

  Args:
    sharding: Of the step.
    params: Its parameters.
    batch: Its batch.

  Returns:
    None where nothing is to be said: the batch is on one device, or on all, or
    not in parts by its first axis alone.
  """
  of_batch = {x.sharding for x in _placed(batch, sharding.batch)[1]}
  if len(of_batch) != 1:
    return None
  (where,) = of_batch
  if not isinstance(where, jax.sharding.NamedSharding) or where.mesh.size == 1:
    return None
  axes = set(_axes(where.spec[0])) if len(where.spec) else set()
  if not axes:
    return None
  gathered = {}
  for path, x in zip(*_placed(params, sharding.params), strict=True):
    if isinstance(x.sharding, jax.sharding.NamedSharding):
      if axes & {axis for part in x.sharding.spec for axis in _axes(part)}:
        gathered[path] = _without(x.sharding, axes)
  return Placement(batch=where, gathered=gathered)


def _placed(tree: Any, sharding: Any) -> tuple[list[str], list[Any]]:
  """Returns paths and shapes of a tree's leaves, the shapes with shardings."""
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
  placed = kd.sharding.with_sharding_constraint(shapes, sharding)
  leaves = jax.tree_util.tree_leaves_with_path(placed)
  return [
      jax.tree_util.keystr(path, simple=True, separator='.')
      for path, _ in leaves
  ], [x for _, x in leaves]


def _axes(part: Any) -> tuple[str, ...]:
  """Returns the axes of the mesh in one part of a spec."""
  if part is None:
    return ()
  return part if isinstance(part, tuple) else (part,)


def _without(
    sharding: jax.sharding.NamedSharding, axes: set[str]
) -> jax.sharding.NamedSharding:
  spec = [
      tuple(x for x in _axes(part) if x not in axes) for part in sharding.spec
  ]
  return jax.sharding.NamedSharding(
      sharding.mesh,
      jax.sharding.PartitionSpec(*(part or None for part in spec)),
  )
