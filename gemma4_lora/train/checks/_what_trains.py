"""Checks that a run trains something, and does not train the base unasked."""

from typing import Any

from absl import logging
import jax.numpy as jnp
import optax

from gemma4_lora import _trees
from gemma4_lora.optim import _trained

_WHO = 'g4.train.TrainStep'


def check(
    optimizer: optax.GradientTransformation, params: Any
) -> set[_trees.Path]:
  """Raises if nothing trains, or the whole base trains beside LoRA.

  A mask that selects a part of the base is taken as intended. Without LoRA, all
  of a model may be trained.

  Args:
    optimizer: What trains.
    params: Nested; arrays or shapes.

  Returns:
    Paths of what trains.

  Raises:
    ValueError: The optimizer's mask selects nothing, or is missing.
  """
  leaves = {
      path: x
      for path, x in _trees.flatten(params).items()
      if jnp.issubdtype(x.dtype, jnp.floating)
  }
  trained = set(_trained.trained(optimizer, params))
  if not trained:
    raise ValueError(_trained.explain_nothing(params, who=_WHO))
  base = [path for path in leaves if not _trees.is_lora(path)]
  of_base = [path for path in base if path in trained]
  if len(base) == len(leaves) or not of_base:
    return trained
  if len(of_base) == len(base):
    raise ValueError(
        f'{_WHO}: optimizer= changes all {len(base)} leaves of the base model,'
        ' beside LoRA. Write'
        ' optimizer=kd.optim.partial_updates(optax.adamw(…),'
        ' mask=kd.optim.select("lora")). To train all of the model, take it'
        ' without g4.nn.LoRA.'
    )
  logging.info(
      '%s: the mask of optimizer= also selects %d of %d leaves of the base'
      ' model: %s, ….',
      _WHO,
      len(of_base),
      len(base),
      _trees.join(of_base[0]),
  )
  return trained
