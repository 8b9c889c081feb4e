"""LoRA leaves as an `init_transform=` expects them before training."""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp
from kauldron import kd

from gemma4_lora import _trees
from gemma4_lora.ckpts.lora import _fingerprint
from gemma4_lora.nn.branches import _pending


def with_fresh_lora(
    state: kd.train.TrainState, model: nn.Module
) -> kd.train.TrainState:
  """Returns a state with LoRA leaves that a transform takes.

  Their values do not matter, except that A marks leaves which wait for the
  base.

  Args:
    state: The state, of arrays or shapes with shardings.
    model: The model that the state belongs to.
  """
  is_from_base = _fingerprint.is_from_base(model)

  def fresh(keys, leaf):
    path = _trees.key_path(keys)
    is_pending = is_from_base and path[-1] == 'a'
    is_shape = isinstance(leaf, jax.ShapeDtypeStruct)
    if not _trees.is_lora(path) or not (is_pending or is_shape):
      return leaf
    make = _pending.fill if is_pending else jnp.zeros
    value = make(leaf.shape, leaf.dtype)
    return jax.device_put(value, leaf.sharding)

  params = jax.tree_util.tree_map_with_path(fresh, state.params)
  return dataclasses.replace(state, params=params)
