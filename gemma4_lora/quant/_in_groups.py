"""Base of formats whose scales are shared by groups of neighbours."""

import abc
from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gemma4_lora.quant import _format


@dataclasses.dataclass(frozen=True)
class InGroups(_format.Format):
  """Neighbours along the input share a scale."""

  group_size: int = 32

  def __post_init__(self):
    super().__post_init__()
    size = self.group_size
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
      raise ValueError(
          f'group_size= takes a positive integer, in weights. Got: {size!r}'
      )

  def encoding(
      self, shape: tuple[int, ...], in_axes: Sequence[int], *, name: str
  ) -> _format.Encoding:
    whole = super().encoding(shape, in_axes, name=name)
    block, left = [1] * len(shape), self.group_size
    for axis in sorted(in_axes, reverse=True):
      block[axis] = size = math.gcd(left, shape[axis])
      if size < shape[axis]:
        break
      left //= size
    total = math.prod(shape[axis] for axis in in_axes)
    if total <= self.group_size:  # One group.
      return whole
    if math.prod(block) != self.group_size:
      sizes = [n for n in range(2, 257) if total % n == 0]
      raise ValueError(
          f'{_format.ARGUMENT}={self.kind}: group_size={self.group_size} does'
          f' not divide the input of {name}, which is'
          f' {" x ".join(str(shape[axis]) for axis in sorted(in_axes))}. Give'
          f' group_size= one of {sizes}, or this part a format of its own:'
          f' {_format.ARGUMENT}=[g4.quant.Int8({name!r}), ...].'
      )
    return dataclasses.replace(whole, block=tuple(block))

  @classmethod
  @abc.abstractmethod
  def encode_groups(
      cls, groups: jax.Array, *, scale_dtype: Any
  ) -> tuple[jax.Array, jax.Array]:
    """Returns codes `[m, n]` and scales `[m]` of groups `[m, n]`."""

  @classmethod
  def encode(
      cls, array: jax.Array, encoding: _format.Encoding
  ) -> tuple[jax.Array, jax.Array]:
    pairs = zip(array.shape, encoding.block, strict=True)
    split = [m for n, b in pairs for m in (n // b, b)]
    order = [*range(0, 2 * array.ndim, 2), *range(1, 2 * array.ndim, 2)]
    groups = array.reshape(split).transpose(order)
    scales_shape = encoding.scales_shape(array.shape)
    codes, scales = cls.encode_groups(
        groups.reshape(math.prod(scales_shape), -1),
        scale_dtype=jnp.dtype(encoding.scale_dtype),
    )
    codes = codes.reshape(groups.shape).transpose(np.argsort(order).tolist())
    return codes.reshape(array.shape), scales.reshape(scales_shape)

  @classmethod
  def describe(cls, encoding: _format.Encoding) -> str:
    text = f'{cls.kind}, groups of {math.prod(encoding.block)}'
    if encoding.scales_kind != cls.default_scale_dtype:
      text += f', {encoding.scales_kind} scales'
    return text

  @classmethod
  def settings(cls, encoding: _format.Encoding) -> dict[str, Any]:
    return {'group_size': math.prod(encoding.block)}
