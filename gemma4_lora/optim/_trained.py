"""Which leaves an optimizer changes, read from its program, without a run."""

from typing import Any

import jax
import optax

from gemma4_lora import _trees
from gemma4_lora.optim import _dataflow


def trained(
    optimizer: optax.GradientTransformation,
    params: Any,
    opt_state: Any = None,
) -> list[_trees.Path]:
  """Returns the leaves that the optimizer changes.

  A leaf counts if its update is computed from gradients, values or moments of
  leaves of its kind (base or LoRA). The state's structure does not show it:
  `optax.sgd` keeps none. A trial step does not, as a warm-up starts at zero.
  Leaves of the other kind do not count: clipping by the global norm reads all
  leaves, and keeps updates of zero at zero.

  Args:
    optimizer: What trains.
    params: Nested; arrays or shapes.
    opt_state: State of the optimizer; arrays or shapes. Default: what it starts
      with.
  """

  def shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)

  params = shapes(params)
  if opt_state is None:
    opt_state = jax.eval_shape(optimizer.init, params)
  opt_state = shapes(opt_state)
  program = jax.make_jaxpr(lambda g, s, p: optimizer.update(g, s, p)[0])(
      params, opt_state, params
  )
  paths = list(_trees.flatten(params))
  state_paths = list(_trees.flatten(opt_state))
  changed = set()
  for is_lora in (False, True):
    kind = {path for path in paths if _trees.is_lora(path) == is_lora}
    of_params = [path in kind for path in paths]
    of_state = [
        any(path[i:] in kind for i in range(len(path))) for path in state_paths
    ]
    flags = _dataflow.flow(program.jaxpr, [*of_params, *of_state, *of_params])
    changed |= {
        path
        for path, is_changed in zip(paths, flags, strict=True)
        if is_changed and path in kind
    }
  return [path for path in paths if path in changed]


def explain_nothing(params: Any, *, who: str) -> str:
  """Returns why nothing trains, and the names that a mask can select.

  Args:
    params: Nested; arrays or shapes.
    who: The caller, for messages.
  """
  paths = list(_trees.flatten(params))
  lora = [path for path in paths if _trees.is_lora(path)]
  names = sorted(
      {name for path in paths for name in path if not name.startswith('layer_')}
  )
  of_lora = ''
  if lora:
    of_lora = (
        f' LoRA are {len(lora)} leaves, {_trees.join(lora[0])} first:'
        ' mask=kd.optim.select("lora").'
    )
  return (
      f'{who}: optimizer= changes no parameter: nothing would train. Most likely,'
      f' mask=kd.optim.select(…) matches no path.{of_lora} Names in the paths:'
      f' {", ".join(names)}.'
  )
