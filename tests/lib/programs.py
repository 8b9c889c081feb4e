"""What programs compute, without compiling them."""

from collections.abc import Iterator
from typing import Any

import jax


def steps(jaxpr: Any) -> Iterator[Any]:
  """Yields the equations of a program, those within loops too."""
  for eqn in jaxpr.eqns:
    yield eqn
    for value in jax.tree.leaves(list(eqn.params.values())):
      sub = getattr(value, 'jaxpr', value)
      if hasattr(sub, 'eqns'):
        yield from steps(sub)


def arrays(jaxpr: Any) -> Iterator[Any]:
  """Yields shape and dtype of all that a program computes."""
  for eqn in steps(jaxpr):
    yield from (x.aval for x in eqn.outvars)
