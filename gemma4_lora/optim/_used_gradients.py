"""Finds optimizers that bring the gradients of frozen leaves back.

`kd.optim.partial_updates` gives frozen leaves updates of zero, and XLA then
drops their gradients. A transform around it that reads all gradients brings
them back: the whole backward pass for weights that never change.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax.extend import core
import optax

from gemma4_lora import _trees
from gemma4_lora.optim import _dataflow

_SHOWN = 3


def frozen_gradients(
    optimizer: optax.GradientTransformation, params: Any
) -> list[str]:
  """Returns the leaves whose gradients an optimizer reads and never applies.

  ```python
  for path in g4.optim.frozen_gradients(optimizer, params):
    ...
  ```

  Known from the optimizer's program; nothing is run.

  Args:
    optimizer: What trains.
    params: Nested; arrays or shapes.

  Returns:
    Dotted paths of leaves whose gradients reach another leaf's update, or the
    optimizer's state, but not their own update. Should be empty.
  """
  program, state = _program(optimizer, params)
  paths = [_keys(path) for path, _ in _with_path(params)]
  is_base = [not _trees.is_lora(path) for path in paths]
  base = {path for path, mark in zip(paths, is_base, strict=True) if mark}
  of_state = [
      any(path[i:] in base for i in range(len(path)))
      for path in (_keys(keys) for keys, _ in _with_path(state))
  ]
  changed = _dataflow.flow(program, [*is_base, *of_state, *is_base])
  read = _used(program, len(paths))
  return [
      '.'.join(path)
      for path, mark, is_read, is_changed in zip(
          paths, is_base, read, changed, strict=False
      )
      if mark and is_read and not is_changed
  ]


def explain(paths: Sequence[str]) -> str:
  """Returns the problem of an optimizer, and the fix.

  Args:
    paths: What `frozen_gradients` returned; not empty.
  """
  return (
      f'optimizer= reads the gradients of {len(paths)} leaves that it never'
      f' changes ({", ".join(paths[:_SHOWN])}, …): each step computes the'
      ' backward pass for frozen weights, as much again as LoRA takes.'
      ' Move transforms that read all gradients into partial_updates:'
      ' kd.optim.partial_updates(optax.chain(optax.clip_by_global_norm(1.0),'
      ' optax.adamw(…)), mask=kd.optim.select("lora")), which also clips by the'
      ' norm of what is trained. To accumulate gradients, rather than'
      ' optax.MultiSteps: trainstep=g4.train.TrainStep(num_microbatches=…).'
  )


def used_gradients(
    optimizer: optax.GradientTransformation, params: Any
) -> list[bool]:
  """Returns, per leaf of `params`, whether the optimizer reads its gradient.

  Args:
    optimizer: What trains.
    params: Arrays or shapes.
  """
  program, _ = _program(optimizer, params)
  return _used(program, len(jax.tree.leaves(params)))


def _used(program: core.Jaxpr, num_leaves: int) -> list[bool]:
  return _dataflow.live(program, [True] * len(program.outvars))[:num_leaves]


def _program(
    optimizer: optax.GradientTransformation, params: Any
) -> tuple[core.Jaxpr, Any]:
  """Returns the program of an update, and the optimizer's state as shapes.

  The program maps gradients, state and parameters to updates and a new state.

  Args:
    optimizer: What trains.
    params: Arrays or shapes.
  """
  params = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params
  )
  state = jax.eval_shape(optimizer.init, params)
  program = jax.make_jaxpr(optimizer.update)(params, state, params)
  return program.jaxpr, state


def _with_path(tree: Any) -> Any:
  return jax.tree_util.tree_leaves_with_path(tree)


def _keys(path: Any) -> tuple[str, ...]:
  return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
