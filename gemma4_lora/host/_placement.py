"""Shardings of a step's arrays, for the loops of its model.

Under FSDP, devices share both the batch and the weights. For each product, the
compiler chooses which of the two to move. In a loop over layers it moves
activations between devices and sums partial products, which is far more data
than the weights. So we constrain each layer's input to the batch's sharding,
and gather its weights just before use.
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
  """Shardings of the arrays of one step.

  Attributes:
    batch: Sharding of the batch's first axis.
    gathered: Shardings of weights, without mesh axes that the batch uses, by
      dotted path. Only weights that share axes with the batch.
  """

  batch: jax.sharding.NamedSharding
  gathered: Mapping[str, jax.sharding.NamedSharding]

  @functools.cached_property
  def key(self) -> str:
    """A string that identifies this placement within the process."""
    return str(hash((self.batch, tuple(self.gathered.items()))))

  @property
  def num_shards(self) -> int:
    """How many shards the batch is in."""
    axes = _axes(self.batch.spec[0])
    return math.prod(self.batch.mesh.shape[axis] for axis in axes)

  def of_batch(self, x: jax.Array) -> jax.Array:
    """Returns `x`, `[B, ...]`, with the batch's sharding."""
    spec = jax.sharding.PartitionSpec(
        self.batch.spec[0], *[_UNCONSTRAINED] * (x.ndim - 1)
    )
    return jax.lax.with_sharding_constraint(
        x, jax.sharding.NamedSharding(self.batch.mesh, spec)
    )

  def together(self, params: Any, *, prefix: str) -> Any:
    """Returns parameters gathered over the devices of the batch.

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
  """Returns the placement of the traced step, None outside of one."""
  return _current.get()


@contextlib.contextmanager
def within(placement: Placement | None) -> Iterator[None]:
  """Sets the placement of the step that is traced, as a context."""
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
    sharding: Sharding of the step.
    params: Its parameters.
    batch: Its batch.

  Returns:
    None if no constraint is needed: the batch is on one device, replicated, or
    not sharded only by its first axis.
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
