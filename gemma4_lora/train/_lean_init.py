"""A train state whose base leaves are read, not drawn at random first.

Kauldron's order is: draw all leaves at random, then let `init_transform=` put
others in their place. For a restored model, the first step takes most of the
time and memory.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import itertools
from typing import Any

import jax
from jax.extend import core
from kauldron import kd
import numpy as np

from gemma4_lora import _trees
from gemma4_lora.ckpts import _checkpointer
from gemma4_lora.ckpts.restore import _followers
from gemma4_lora.host import _devices
from gemma4_lora.nn.branches import _pending
from gemma4_lora.quant import _formats
from gemma4_lora.train import _eager

_PARAMS = 'params'
# Not their subclasses: `LoRACheckpointer` does not save the base.
_SAVE_ALL = (kd.ckpts.Checkpointer, _checkpointer.Checkpointer)


@dataclasses.dataclass(frozen=True)
class Traced:
  """A traced program that makes a state. Traced once: that takes seconds.

  Attributes:
    jaxpr: Its results are the leaves of the state.
    shapes: The state, with the shardings of the run where it has one.
  """

  jaxpr: core.Jaxpr
  shapes: kd.train.TrainState


def trace(
    init_model: Callable[[], kd.train.TrainState],
    sharding: kd.sharding.ShardingStrategy,
) -> Traced:
  """Traces a function that makes a state.

  Args:
    init_model: Makes a state without an optimizer.
    sharding: Sharding of the run.
  """
  jaxpr, shapes = jax.make_jaxpr(init_model, return_shape=True)()
  shapes = kd.sharding.with_sharding_constraint(shapes, sharding.state)
  return Traced(jaxpr=jaxpr, shapes=shapes)


def without(
    traced: Traced, restored: frozenset[_trees.Path]
) -> kd.train.TrainState:
  """Returns the state, without computing some of it.

  Args:
    traced: The traced program.
    restored: Leaves that will be restored.

  Returns:
    The state, with `jax.ShapeDtypeStruct`s for those leaves. LoRA leaves that
    start from the base have no values yet, see `_pending`.
  """
  flat = _trees.flatten(traced.shapes)
  follow = {
      path
      for path in flat
      if path[0] == _PARAMS and _follows(path, flat, restored)
  }
  wanted = [path not in restored | follow for path in flat]
  drawn = itertools.compress(flat, wanted)
  values = dict(zip(drawn, _eager.run(traced.jaxpr, wanted), strict=True))

  def pick(keys, shape):
    path = _trees.key_path(keys)
    if path in follow:
      return _put(_pending.fill(shape.shape, shape.dtype), shape)
    return _put(values[path], shape) if path in values else shape

  return jax.tree_util.tree_map_with_path(pick, traced.shapes)


def _put(value: jax.Array, like: Any) -> jax.Array:
  """Returns a value with the sharding of another one.

  Args:
    value: With several processes, each has all of it, or it is sharded over the
      devices of all, if the function that draws it has a sharding.
    like: Has the sharding.
  """
  if like.sharding is None:
    return value
  if jax.process_count() == 1 or not value.is_fully_addressable:
    return jax.device_put(value, like.sharding)
  return _devices.place(np.asarray(value), like)


def _follows(
    path: _trees.Path,
    flat: Mapping[_trees.Path, Any],
    restored: frozenset[_trees.Path],
) -> bool:
  """Whether restoring the base will set a LoRA leaf."""
  if not _followers.is_follower(path):
    return False
  scope = _followers.base_of(path)
  return all(
      x in restored
      for x in flat
      if x[: len(scope)] == scope and not _trees.is_lora(x)
  )


def check_storable(shapes: kd.train.TrainState, checkpointer: Any) -> None:
  """Raises if the checkpointer would fail at its first save.

  Args:
    shapes: The state's shapes.
    checkpointer: The run's checkpointer.
  """
  if type(checkpointer) not in _SAVE_ALL:
    return
  for path, leaf in _trees.flatten(shapes).items():
    cls = _formats.of_codes(path[-1], leaf.dtype)
    if cls is not None and cls.stored_dtype is not None:
      others = [x.kind for x in _formats.FORMATS if x.stored_dtype is None]
      raise ValueError(
          f'{_trees.join(path)} is {leaf.dtype}, as codes of {cls.kind} are,'
          ' which Orbax cannot write (tensorstore has no such dtype):'
          ' checkpointer=kd.ckpts.Checkpointer(…) would save them. Use'
          ' checkpointer=g4.ckpts.LoRACheckpointer(…), which does not save the'
          f' base, or quantize= one of {others}.'
      )


def check_complete(state: kd.train.TrainState) -> None:
  """Raises if a leaf has no value."""
  for path, leaf in _trees.flatten(state).items():
    if isinstance(leaf, jax.ShapeDtypeStruct):
      raise ValueError(
          f'{_trees.join(path)} has no value (ShapeDtypeStruct): init_transform='
          ' did not restore what it announced.'
      )
