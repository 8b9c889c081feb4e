"""Which inputs of a program its outputs depend on."""

from collections.abc import Sequence
from typing import Any

from jax.extend import core

# Primitives whose inner program has the same inputs and outputs.
_CALLS = ('jit', 'pjit', 'closed_call', 'core_call', 'remat', 'checkpoint')


def flow(jaxpr: core.Jaxpr, inputs: Sequence[bool]) -> list[bool]:
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
      branches = [flow(b.jaxpr, ins[1:]) for b in eqn.params['branches']]
      outs = [any(marks) for marks in zip(*branches, strict=True)]
    elif (
        eqn.primitive.name not in ('scan', 'while')
        and isinstance(inner, core.Jaxpr)
        and len(inner.invars) == len(ins)
    ):
      outs = flow(inner, ins)
    else:
      outs = [any(ins)] * len(eqn.outvars)
    marked |= {v for v, mark in zip(eqn.outvars, outs, strict=True) if mark}
  return [is_marked(atom) for atom in jaxpr.outvars]


def live(jaxpr: core.Jaxpr, outs: Sequence[bool]) -> list[bool]:
  """Returns which inputs of a program some of its outputs need.

  Args:
    jaxpr: The program.
    outs: The outputs in question.
  """
  needed_vars = _variables(jaxpr.outvars, outs)
  for eqn in reversed(jaxpr.eqns):
    needed = [var in needed_vars for var in eqn.outvars]
    if not any(needed):
      continue
    inner = eqn.params.get('jaxpr') or eqn.params.get('call_jaxpr')
    inner = getattr(inner, 'jaxpr', inner)
    if eqn.primitive.name == 'cond':
      branches = [live(b.jaxpr, needed) for b in eqn.params['branches']]
      ins = [True, *(any(marks) for marks in zip(*branches, strict=True))]
    elif eqn.primitive.name in _CALLS and inner is not None:
      ins = live(inner, needed)
    else:
      ins = [True] * len(eqn.invars)
    needed_vars |= _variables(eqn.invars, ins)
  return [var in needed_vars for var in jaxpr.invars]


def _variables(atoms: Sequence[Any], marks: Sequence[bool]) -> set[Any]:
  return {
      x
      for x, mark in zip(atoms, marks, strict=True)
      if mark and not isinstance(x, core.Literal)
  }
