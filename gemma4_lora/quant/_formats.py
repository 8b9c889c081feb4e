"""Formats: what a user writes to choose how the base is held."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
from typing import Any
from typing import ClassVar

import jax.numpy as jnp

from gemma4_lora.quant import _kinds

ALL = 'all'
_ARGUMENT = 'quantize'


@dataclasses.dataclass(frozen=True)
class Format:
  """What all formats have: which parts of the base are held in it.

  Attributes:
    select: Strings and rules as in `g4.targets`, or `'all'`: every linear,
      routed experts and towers included, and the embeddings. Norms, scalars
      and the router stay as they are.
  """

  select: Any = ALL

  kind: ClassVar[str]

  def __post_init__(self):
    if isinstance(self.select, list):  # As JSON and configs have it.
      object.__setattr__(self, 'select', tuple(self.select))

  def layout(
      self, shape: tuple[int, ...], in_axes: Sequence[int], *, name: str
  ) -> _kinds.Layout:
    """Returns how one array is quantised.

    Args:
      shape: Of the array.
      in_axes: Axes that are summed over in its product; of a table, those of a
        row.
      name: Of the array, for messages.

    Raises:
      ValueError: Groups do not divide it.
    """
    del name
    axes = frozenset(in_axes)
    return _kinds.Layout(
        kind=self.kind,
        block=tuple(n if i in axes else 1 for i, n in enumerate(shape)),
        scale_dtype=jnp.dtype(_kinds.KINDS[self.kind].scale_dtype),
    )


@dataclasses.dataclass(frozen=True)
class Int8(Format):
  """8-bit integers, a float32 scale per output channel; of tables, per row.

  A scale is `largest / 127.5`, as in qwix.
  """

  kind = 'int8'


@dataclasses.dataclass(frozen=True)
class _InGroups(Format):
  """Neighbours along the input share a scale."""

  group_size: int = 32

  def __post_init__(self):
    super().__post_init__()
    size = self.group_size
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
      raise ValueError(
          f'group_size= takes a positive integer, in weights. Got: {size!r}'
      )

  def layout(
      self, shape: tuple[int, ...], in_axes: Sequence[int], *, name: str
  ) -> _kinds.Layout:
    whole = super().layout(shape, in_axes, name=name)
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
          f'{_ARGUMENT}={self.kind}: group_size={self.group_size} does not'
          f' divide the input of {name}, which is'
          f' {" x ".join(str(shape[axis]) for axis in sorted(in_axes))}. Give'
          f' group_size= one of {sizes}, or this part a format of its own:'
          f' {_ARGUMENT}=[g4.quant.Int8({name!r}), ...].'
      )
    return dataclasses.replace(whole, block=tuple(block))


@dataclasses.dataclass(frozen=True)
class Int4(_InGroups):
  """4-bit integers, -8 to 7; neighbours along the input share a scale.

  Weights that lie on such a grid, as those of quantisation-aware training do,
  lose nothing: their scales are found. Else a scale is `largest / 7.5`, as in
  qwix.

  Attributes:
    group_size: How many weights share a scale.
    scale_dtype: Of the scales: `'bfloat16'`, 4.5 bits per weight in groups of
      32; or `'float32'`, 5 bits.
  """

  scale_dtype: str = 'bfloat16'

  kind = 'int4'

  def __post_init__(self):
    super().__post_init__()
    if self.scale_dtype not in ('bfloat16', 'float32'):
      raise ValueError(
          "scale_dtype= takes 'bfloat16' or 'float32'. Got:"
          f' {self.scale_dtype!r}'
      )

  def layout(
      self, shape: tuple[int, ...], in_axes: Sequence[int], *, name: str
  ) -> _kinds.Layout:
    layout = super().layout(shape, in_axes, name=name)
    return dataclasses.replace(layout, scale_dtype=jnp.dtype(self.scale_dtype))


@dataclasses.dataclass(frozen=True)
class NF4(_InGroups):
  """4-bit NormalFloat (https://arxiv.org/abs/2305.14314), float32 scales.

  Attributes:
    group_size: How many weights share a scale, their largest.
    double: Whether scales are int8 in turn, around the mean of those of one
      output channel (of tables, of one row): 4.2 bits per weight where 4.5 are
      without.
  """

  group_size: int = 64
  double: bool = False

  kind = 'nf4'

  def layout(
      self, shape: tuple[int, ...], in_axes: Sequence[int], *, name: str
  ) -> _kinds.Layout:
    layout = super().layout(shape, in_axes, name=name)
    return dataclasses.replace(layout, double=self.double)


_BY_NAME: Mapping[str, type[Format]] = {
    cls.kind: cls for cls in (Int8, Int4, NF4)
}


def normalize(quantize: Any) -> tuple[Format, ...]:
  """Returns formats from what a user wrote: hashable, and fit for JSON.

  Args:
    quantize: None, a format or the name of one, or several.

  Raises:
    ValueError: Anything else, or an empty list.
  """
  if quantize is None:
    return ()
  if not isinstance(quantize, (list, tuple)):
    quantize = [quantize]
  if not quantize:
    raise ValueError(
        f'{_ARGUMENT}=[] quantises nothing. Leave it out for a base that is as'
        f' released, or name a format: {", ".join(map(repr, _BY_NAME))}.'
    )
  formats = []
  for value in quantize:
    if isinstance(value, str) and value in _BY_NAME:
      value = _BY_NAME[value]()
    if not isinstance(value, Format):
      raise ValueError(
          f'{_ARGUMENT}= takes {", ".join(map(repr, _BY_NAME))}, or formats, as'
          f' {_ARGUMENT}=[g4.quant.Int8("embeddings"),'
          f' g4.quant.Int4(group_size=64)]. Got: {value!r}'
      )
    formats.append(value)
  return tuple(formats)
