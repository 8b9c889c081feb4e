"""Shapes and shardings of a training state and its batch; nothing allocated."""

from collections.abc import Mapping
import dataclasses
import functools
import math
from typing import Any

import flax
import jax
from kauldron import kd

from gemma4_lora import _trees
from gemma4_lora.tpu import _batch
from gemma4_lora.tpu import _errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shapes:
  """Arguments of a training step, as `jax.ShapeDtypeStruct`s with shardings.

  Attributes:
    state: A `kd.train.TrainState`.
    batch: A nested dict.
  """

  state: Any
  batch: Any

  def bytes_per_device(self) -> Mapping[str, int]:
    """Bytes by what they are for; the largest share of any device."""
    params = self.state.params
    return {
        'weights': _bytes(params, lambda path: not _trees.is_lora(path)),
        'lora': _bytes(params, _trees.is_lora),
        'optimizer': _bytes(self.state.opt_state),
        'batch': _bytes(self.batch),
        'other': _bytes((self.state.step, self.state.collections)),
    }


def shapes_of(trainer: kd.train.Trainer, batch: _batch.Batch) -> Shapes:
  """Returns the arguments of the step.

  Args:
    trainer: Resolved within `_mesh.on_devices`.
    batch: Shapes over all devices.

  Raises:
    PlanError: The batch cannot be split over the devices.
  """
  mesh = kd.sharding.DEVICES_MESH
  # A frozen one can be the static argument that it is in Kauldron.
  spec = flax.core.freeze(batch.spec)
  state = jax.eval_shape(
      lambda: trainer.init_state(skip_transforms=True, element_spec=spec)
  )
  without_optimizer = kd.sharding.with_sharding_constraint(
      state.replace(opt_state=None),
      trainer.sharding.state.replace(opt_state=None),
  )
  state = without_optimizer.replace(
      opt_state=_sharded_like(
          state.opt_state, _opt_state_sharding(trainer, without_optimizer)
      )
  )
  arrays = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch.spec
  )
  shapes = Shapes(
      state=_replicated_by_default(state),
      batch=_replicated_by_default(
          kd.sharding.with_sharding_constraint(arrays, trainer.sharding.batch)
      ),
  )
  _check_divisible(shapes, batch, mesh)
  return shapes


def _opt_state_sharding(trainer: kd.train.Trainer, state: Any) -> Any:
  """Returns how the compiler lays out the optimizer's state.

  Kauldron leaves it to the compiler by default, in a program of its own.
  """
  optimizer = trainer.trainstep.optimizer

  # The parameters go through, as in Kauldron, and in place.
  @functools.partial(jax.jit, donate_argnums=0)
  def init(params):
    opt_state = kd.sharding.with_sharding_constraint(
        optimizer.init(params), trainer.sharding.opt_state
    )
    return opt_state, params

  if kd.sharding.DEVICES_MESH.size == 1:
    return kd.sharding.REPLICATED
  params = _replicated_by_default(state.params)
  return init.lower(params).compile().output_shardings[0]


def _sharded_like(tree: Any, shardings: Any) -> Any:
  if isinstance(shardings, jax.sharding.Sharding):
    return jax.tree.map(lambda x: _with(x, shardings), tree)
  return jax.tree.map(_with, tree, shardings)


def _with(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=sharding, weak_type=x.weak_type
  )


def _replicated_by_default(tree: Any) -> Any:
  """Replicates what no rule places."""
  return jax.tree.map(
      lambda x: x if x.sharding else _with(x, kd.sharding.REPLICATED), tree
  )


def _bytes(tree: Any, keep=lambda path: True) -> int:
  """Bytes on one device."""
  total = 0
  for path, x in jax.tree_util.tree_leaves_with_path(tree):
    if keep(_trees.key_path(path)):
      # Two codes of 4 bits lie in a byte, of which `itemsize` knows nothing.
      bits = jax.dtypes.itemsize_bits(x.dtype)
      total += math.prod(x.sharding.shard_shape(x.shape)) * bits // 8
  return total


def _check_divisible(
    shapes: Shapes, batch: _batch.Batch, mesh: jax.sharding.Mesh
) -> None:
  for x in jax.tree.leaves(shapes.batch):
    try:
      x.sharding.shard_shape(x.shape)
    except ValueError as e:
      raise _errors.PlanError(
          f'A batch of {batch.batch} cannot be split over {mesh.size} devices'
          ' as sharding.batch of the config says. Give a multiple of'
          f' {mesh.size}: batch= (--batch=).'
      ) from e
