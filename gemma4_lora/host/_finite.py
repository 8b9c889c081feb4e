"""Finds arrays with NaN or infinite values."""

from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Arrays up to this size are copied to the host, where nothing is compiled.
_SMALL_BYTES = 2**26


def not_finite[K: Hashable](
    leaves: Mapping[K, Any], *, infinite: bool = True
) -> list[K]:
  """Returns the keys of arrays with NaN or infinite values.

  Args:
    leaves: Arrays. Shapes, tracers and integers count as finite.
    infinite: Whether infinite values count, too.
  """
  return which(leaves, _bad if infinite else _has_nan)


def which[K: Hashable](
    leaves: Mapping[K, Any], test: Callable[[Any, Any], Any]
) -> list[K]:
  """Returns the keys of arrays for which a test is true.

  Args:
    leaves: Arrays. The test is false for shapes, tracers and integers.
    test: Returns a bool scalar, given NumPy or `jax.numpy`, and an array of it.
  """
  known = {key: x for key, x in leaves.items() if _is_known(x)}
  is_small = sum(x.nbytes for x in known.values()) <= _SMALL_BYTES
  # Kauldron's loop allows only explicit copies.
  with jax.transfer_guard('allow'):
    if is_small and all(_is_here(x) for x in known.values()):
      flags = [test(np, np.asarray(x)) for x in known.values()]
    else:
      flags = _on_devices(list(known.values()), test)
    return [
        key for key, holds in zip(known, map(bool, flags), strict=True) if holds
    ]


@functools.partial(jax.jit, static_argnums=1)
def _on_devices(xs: list[Any], test: Callable[[Any, Any], Any]) -> list[Any]:
  return [test(jnp, x) for x in xs]


def _bad(numpy: Any, x: Any) -> Any:
  return ~numpy.isfinite(x).all()


def _has_nan(numpy: Any, x: Any) -> Any:
  return numpy.isnan(x).any()


def _is_known(x: Any) -> bool:
  if isinstance(x, jax.core.Tracer):
    return False
  is_array = isinstance(x, (jax.Array, np.ndarray))
  return is_array and jnp.issubdtype(x.dtype, jnp.floating)


def _is_here(x: Any) -> bool:
  return not isinstance(x, jax.Array) or x.is_fully_addressable
