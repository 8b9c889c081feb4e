"""4-bit integers, neighbours along the input share a scale."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from gemma4_lora.quant import _format
from gemma4_lora.quant import _grid
from gemma4_lora.quant import _in_groups


@dataclasses.dataclass(frozen=True)
class Int4(_in_groups.InGroups):
  """4-bit integers, -8 to 7; neighbours along the input share a scale.

  Weights on such a grid, as those of quantisation-aware training, lose nothing:
  their scales are found. Otherwise a scale is `largest / 7.5`, as in qwix.

  Attributes:
    group_size: How many weights share a scale.
    scale_dtype: The scales' dtype: `'bfloat16'`, 4.5 bits per weight in groups of
      32; or `'float32'`, 5 bits.
  """

  scale_dtype: str = 'bfloat16'

  kind = 'int4'
  codes_dtype = jnp.int4
  default_scale_dtype = 'bfloat16'
  has_grid = True

  def __post_init__(self):
    super().__post_init__()
    if self.scale_dtype not in ('bfloat16', 'float32'):
      raise ValueError(
          "scale_dtype= takes 'bfloat16' or 'float32'. Got:"
          f' {self.scale_dtype!r}'
      )

  def encoding(
      self, shape: tuple[int, ...], in_axes: Sequence[int], *, name: str
  ) -> _format.Encoding:
    encoding = super().encoding(shape, in_axes, name=name)
    return dataclasses.replace(
        encoding, scale_dtype=jnp.dtype(self.scale_dtype)
    )

  @classmethod
  def encode_groups(
      cls, groups: jax.Array, *, scale_dtype: Any
  ) -> tuple[jax.Array, jax.Array]:
    return _grid.quantize(groups, scale_dtype=scale_dtype)

  @classmethod
  def settings(cls, encoding: _format.Encoding) -> dict[str, Any]:
    settings = super().settings(encoding)
    if encoding.scales_kind != cls.default_scale_dtype:
      settings['scale_dtype'] = encoding.scales_kind
    return settings
