"""Runs a small part of a large program, without compiling it as one.

LoRA leaves need hundreds of small draws of a model's `init`. XLA takes minutes
to compile them as one program of 35 layers, and nothing to compile one draw of
each shape.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval

# Calls with more operations than this run operation by operation.
_MAX_OPS = 100

_CALLS = ('jit', 'pjit', 'closed_call')


def run(closed: core.Jaxpr, wanted: Sequence[bool]) -> list[jax.Array]:
  """Returns some results of a program, and computes only what they need.

  Args:
    closed: The program, without arguments.
    wanted: Which of its results.
  """
  jaxpr, _, *_ = partial_eval.dce_jaxpr(closed.jaxpr, list(wanted))
  return _evaluate(jaxpr, closed.consts, [])


def _evaluate(jaxpr: core.Jaxpr, consts: list[Any], args: list[Any]) -> list:
  values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
  values |= dict(zip(jaxpr.invars, args, strict=True))

  def read(atom):
    return atom.val if isinstance(atom, core.Literal) else values[atom]

  for eqn in jaxpr.eqns:
    ins = [read(atom) for atom in eqn.invars]
    inner: Any = eqn.params.get('jaxpr')
    if eqn.primitive.name in _CALLS and _num_ops(inner) > _MAX_OPS:
      outs = _evaluate(inner.jaxpr, inner.consts, ins)
    else:
      # As `jax.core.eval_jaxpr` does (jax 0.12).
      params = eqn.primitive.get_bind_params(eqn.params)
      with eqn.ctx.manager:
        outs = eqn.primitive.bind(*ins, **params)
      outs = outs if eqn.primitive.multiple_results else [outs]
    values |= dict(zip(eqn.outvars, outs, strict=True))
  return [read(atom) for atom in jaxpr.outvars]


def _num_ops(closed: Any) -> int:
  return sum(
      _num_ops(eqn.params['jaxpr']) if eqn.primitive.name in _CALLS else 1
      for eqn in closed.jaxpr.eqns
  )
