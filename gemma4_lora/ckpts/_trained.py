"""Which leaves an optimizer changes, from its program and no run of it."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.extend import core
import optax

from gemma4_lora.ckpts import _trees


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
    opt_state: Of the optimizer; arrays or shapes.
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
  changed = _flow(program.jaxpr, [*of_params, *of_state, *of_params])
  return [
      _trees.join(path)
      for path, is_changed in zip(paths, changed, strict=True)
      if is_changed and path in base
  ]


def _flow(jaxpr: core.Jaxpr, inputs: Sequence[bool]) -> list[bool]:
  """Returns which outputs are computed from the marked inputs.

  What only decides between values (`optax.apply_if_finite`) does not count.

  Args:
    jaxpr: The program.
    inputs: Which of its inputs are marked.
  """
  marked = {var for var, mark in zip(jaxpr.invars, inputs, strict=True) if mark}

  def is_marked(atom):
    return not isinstance(atom, core.Literal) and atom in marked

  for eqn in jaxpr.eqns:
    ins = [is_marked(atom) for atom in eqn.invars]
    inner = eqn.params.get('jaxpr') or eqn.params.get('call_jaxpr')
    inner = getattr(inner, 'jaxpr', inner)
    if eqn.primitive.name == 'select_n':
      outs = [any(ins[1:])]
    elif eqn.primitive.name == 'cond':
      branches = [_flow(b.jaxpr, ins[1:]) for b in eqn.params['branches']]
      outs = [any(marks) for marks in zip(*branches, strict=True)]
    elif (
        eqn.primitive.name not in ('scan', 'while')
        and isinstance(inner, core.Jaxpr)
        and len(inner.invars) == len(ins)
    ):
      outs = _flow(inner, ins)
    else:
      outs = [any(ins)] * len(eqn.outvars)
    marked |= {v for v, mark in zip(eqn.outvars, outs, strict=True) if mark}
  return [is_marked(atom) for atom in jaxpr.outvars]
