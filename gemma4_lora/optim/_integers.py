"""Optimizers for parameters some of which are integers, such as codes."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def keep_integers(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
  """Returns an optimizer that leaves integers among parameters as they are.

  ```python
  optimizer = g4.optim.keep_integers(
      optimizer=kd.optim.partial_updates(optax.adamw(1e-4), mask=...)
  )
  ```

  `jax.grad` gives them gradients of dtype `float0`. Nothing can be added to
  these, and an optimizer that freezes the leaves passes them on.
  `g4.train.TrainStep` does this itself; with `kd.train.TrainStep` a quantised
  base needs it.

  Args:
    optimizer: What trains the rest.
  """
  inner = optax.with_extra_args_support(optimizer)

  def update(updates: Any, state: Any, params: Any = None, **kwargs: Any):
    if params is None:
      return inner.update(updates, state, params, **kwargs)
    updates = jax.tree.map(_zero, updates, params)
    return inner.update(updates, state, params, **kwargs)

  return optax.GradientTransformationExtraArgs(inner.init, update)


def has_integers(params: Any) -> bool:
  """Whether a leaf has no gradient."""
  return not all(
      jnp.issubdtype(x.dtype, jnp.inexact) for x in jax.tree.leaves(params)
  )


def _zero(gradient: Any, param: Any) -> Any:
  if jnp.issubdtype(param.dtype, jnp.inexact):
    return gradient
  return jnp.zeros(param.shape, param.dtype)
