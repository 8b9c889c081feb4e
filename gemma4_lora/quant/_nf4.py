"""4-bit NormalFloat: 16 levels, equally frequent for normal weights.

https://arxiv.org/abs/2305.14314
"""

from collections.abc import Sequence
import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gemma4_lora.quant import _format
from gemma4_lora.quant import _in_groups
from gemma4_lora.quant import _int8

# From appendix E.
_BOOK = (
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


@dataclasses.dataclass(frozen=True)
class NF4(_in_groups.InGroups):
  """4-bit NormalFloat (https://arxiv.org/abs/2305.14314), float32 scales.

  Attributes:
    group_size: How many weights share a scale, their largest.
    double: Whether scales are int8, around the mean of one output channel (in
      tables, of one row): 4.2 bits per weight instead of 4.5.
  """

  group_size: int = 64
  double: bool = False

  kind = 'nf4'
  codes_dtype = jnp.uint4
  stored_dtype = jnp.uint8

  def encoding(
      self, shape: tuple[int, ...], in_axes: Sequence[int], *, name: str
  ) -> _format.Encoding:
    encoding = super().encoding(shape, in_axes, name=name)
    scales_format = _int8.Int8 if self.double else None
    return dataclasses.replace(encoding, scales_format=scales_format)

  @classmethod
  def encode_groups(
      cls, groups: jax.Array, *, scale_dtype: Any
  ) -> tuple[jax.Array, jax.Array]:
    return _quantize(groups, scale_dtype=scale_dtype)

  @classmethod
  def levels(cls, codes: jax.Array, dtype: Any) -> jax.Array:
    return _levels(codes, dtype)

  @classmethod
  def settings(cls, encoding: _format.Encoding) -> dict[str, Any]:
    settings = super().settings(encoding)
    if encoding.double:
      settings['double'] = True
    return settings


@jax.jit(static_argnames='scale_dtype')
def _quantize(
    groups: jax.Array, *, scale_dtype: Any
) -> tuple[jax.Array, jax.Array]:
  """Returns codes and scales of groups.

  Args:
    groups: `[m, n]`, n weights share a scale.
    scale_dtype: Dtype of the scales.

  Returns:
    uint4 `[m, n]`, the nearest levels, and `[m]`.
  """
  w = groups.astype(jnp.float32)
  scales = jnp.abs(w).max(-1).astype(scale_dtype)
  divisor = jnp.where(scales > 0, scales, 1).astype(jnp.float32)
  w /= divisor[:, None]
  codes = jnp.zeros(w.shape, jnp.uint8)
  for low, high in itertools.pairwise(_BOOK):
    codes += (w > np.float32((low + high) / 2)).astype(jnp.uint8)
  return codes.astype(jnp.uint4), scales


def _levels(codes: jax.Array, dtype: Any) -> jax.Array:
  """Returns the levels of codes."""
  # Selected bit by bit: a gather of single numbers is slow on TPU.
  bits = codes.astype(jnp.int32)
  level = [jnp.asarray(x, dtype) for x in _BOOK]
  while len(level) > 1:
    is_odd = (bits & 1).astype(bool)
    level = [
        jnp.where(is_odd, odd, even)
        for even, odd in zip(level[::2], level[1::2], strict=True)
    ]
    bits >>= 1
  return level[0]
