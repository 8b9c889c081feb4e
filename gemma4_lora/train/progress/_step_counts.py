"""Counts of one step: tokens, trained tokens, norm of the gradients."""

from collections.abc import Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
from kauldron import kontext

from gemma4_lora import _trees
from gemma4_lora.losses import _labels

_NAMES = ('tokens', 'trained', 'grad_norm')


def of_step(
    context: Any, *, model: Any, losses: Any, trained: Sequence[_trees.Path]
) -> jax.Array:
  """Returns the counts of a step, as one small array: a host reads it at once.

  Args:
    context: Kauldron's, after the backward pass.
    model: Says which field of the batch has the tokens.
    losses: By name.
    trained: Paths of the leaves that the optimizer changes.

  Returns:
    f32[3]: tokens, trained tokens, norm of the gradients of what is trained. NaN
    for what is not known.
  """
  tokens, counted = _tokens(context.batch, model=model, losses=losses)
  return jnp.stack([tokens, counted, _norm(context.grads, trained)])


def of_batch(batch: Any, *, model: Any, losses: Any) -> dict[str, float]:
  """Returns how many tokens a batch has, and how many of them are trained.

  Args:
    batch: On devices.
    model: Says which field of the batch has the tokens.
    losses: By name.

  Returns:
    As `read`, without the norm.
  """
  # One program: on several hosts, the batch is no host's alone.
  counts = jax.jit(
      lambda x: jnp.stack(_tokens(x, model=model, losses=losses)),
  )(batch)
  return read([*counts.tolist(), float('nan')])


def read(counts: Any) -> dict[str, float]:
  """Returns the counts that are known, by name: waits for the device."""
  values = [float(x) for x in jax.device_get(counts)]
  found = dict(zip(_NAMES, values, strict=True))
  # An infinite norm is a known value.
  return {name: x for name, x in found.items() if x == x}


def shape_of_tokens(batch: Any, *, model: Any) -> tuple[int, ...] | None:
  """Returns the shape of what the model reads of a batch; None if unknown."""
  tokens = _array(batch, kontext.get_keypaths(model).get('tokens'))
  return None if tokens is None else tuple(tokens.shape)


def _tokens(batch: Any, *, model: Any, losses: Any) -> list[jax.Array]:
  nan = jnp.float32(jnp.nan)
  tokens = _array(batch, kontext.get_keypaths(model).get('tokens'))
  num = nan if tokens is None else (tokens != 0).sum(dtype=jnp.float32)
  # The losses of a run usually count the same tokens.
  counted = _labels.num_counted(losses, {'batch': batch})
  most = functools.reduce(jnp.maximum, counted) if counted else nan
  return [num, most]


def _norm(grads: Any, trained: Sequence[_trees.Path]) -> jax.Array:
  paths = set(trained)
  squares = [
      jnp.sum(jnp.square(x.astype(jnp.float32)))
      for path, x in _trees.flatten(grads).items()
      if path in paths
  ]
  return jnp.sqrt(sum(squares)) if squares else jnp.float32(jnp.nan)


def _array(batch: Any, key: Any) -> Any:
  if not isinstance(key, str):
    return None
  found = kontext.get_by_path({'batch': batch}, key, default=None)
  return found if hasattr(found, 'shape') else None
