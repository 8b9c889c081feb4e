"""Which leaves an optimizer changes, from its program and no run of it."""

from typing import Any

import jax
import optax

from gemma4_lora import _trees
from gemma4_lora.optim import _dataflow


def trained_base(
    optimizer: optax.GradientTransformation, params: Any, opt_state: Any
) -> list[str]:
  """Returns the base leaves that the optimizer changes.

  Those whose update is computed from their own gradient, value or moments. The
  state's structure would not tell: `optax.sgd` keeps none. Nor would a step: a
  warm-up starts at zero.

  Args:
    optimizer: What trains.
    params: Nested; arrays or shapes.
    opt_state: State of the optimizer; arrays or shapes.
  """

  def shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)

  params, opt_state = shapes(params), shapes(opt_state)
  program = jax.make_jaxpr(lambda g, s, p: optimizer.update(g, s, p)[0])(
      params, opt_state, params
  )
  paths = list(_trees.flatten(params))
  base = {path for path in paths if not _trees.is_lora(path)}
  of_params = [path in base for path in paths]
  of_state = [
      any(path[i:] in base for i in range(len(path)))
      for path in _trees.flatten(opt_state)
  ]
  changed = _dataflow.flow(program.jaxpr, [*of_params, *of_state, *of_params])
  return [
      _trees.join(path)
      for path, is_changed in zip(paths, changed, strict=True)
      if is_changed and path in base
  ]
