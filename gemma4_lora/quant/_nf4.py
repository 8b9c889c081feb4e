"""4-bit NormalFloat: 16 levels, of which a normal weight takes each as often.

https://arxiv.org/abs/2305.14314
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Of appendix E.
BOOK = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


@jax.jit(static_argnames='scale_dtype')
def quantize(
    groups: jax.Array, *, scale_dtype: Any
) -> tuple[jax.Array, jax.Array]:
  """Returns codes and scales of groups.

  Args:
    groups: `[m, n]`, n weights share a scale.
    scale_dtype: Of the scales.

  Returns:
    uint4 `[m, n]`, the nearest levels, and `[m]`.
  """
  w = groups.astype(jnp.float32)
  scales = jnp.abs(w).max(-1).astype(scale_dtype)
  divisor = jnp.where(scales > 0, scales, 1).astype(jnp.float32)
  w /= divisor[:, None]
  codes = jnp.zeros(w.shape, jnp.uint8)
  for low, high in itertools.pairwise(BOOK):
    codes += (w > np.float32((low + high) / 2)).astype(jnp.uint8)
  return codes.astype(jnp.uint4), scales


def levels(codes: jax.Array, dtype: Any) -> jax.Array:
  """Returns the levels of codes."""
  # By the bits, one after the other: a gather of single numbers is slow on TPU.
  bits = codes.astype(jnp.int32)
  level = [jnp.asarray(x, dtype) for x in BOOK]
  while len(level) > 1:
    is_odd = (bits & 1).astype(bool)
    level = [
        jnp.where(is_odd, odd, even)
        for even, odd in zip(level[::2], level[1::2], strict=True)
    ]
    bits >>= 1
  return level[0]
