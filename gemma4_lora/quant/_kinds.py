"""The formats in which a frozen base is held, and what an array becomes."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

CODES, SCALES, OFFSET = 'codes', 'scales', 'offset'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
  """How codes are written.

  Attributes:
    name: `'int8'`, `'int4'` or `'nf4'`.
    dtype: Of the codes, which tells the kind of an array.
    scale_dtype: Of the scales.
  """

  name: str
  dtype: Any
  scale_dtype: Any


KINDS = {
    kind.name: kind
    for kind in (
        Kind(name='int8', dtype=jnp.int8, scale_dtype=jnp.float32),
        Kind(name='int4', dtype=jnp.int4, scale_dtype=jnp.bfloat16),
        Kind(name='nf4', dtype=jnp.uint4, scale_dtype=jnp.float32),
    )
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
  """How one array is quantised.

  Attributes:
    kind: Of the codes.
    block: Per axis of the array, how many neighbours share a scale.
    scale_dtype: Of the scales.
    double: Whether the scales are int8 in turn.
  """

  kind: str
  block: tuple[int, ...]
  scale_dtype: Any
  double: bool = False

  def __str__(self) -> str:
    groups = ' x '.join(str(n) for n in self.block if n > 1) or '1'
    scales = 'int8' if self.double else jnp.dtype(self.scale_dtype).name
    return f'{self.kind} in groups of {groups}, scales {scales}'

  @property
  def axis(self) -> int:
    """The axis along which neighbours share a scale; the last of several."""
    shared = [i for i, n in enumerate(self.block) if n > 1]
    return shared[-1] if shared else len(self.block) - 1

  def scales_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the scales."""
    return tuple(n // b for n, b in zip(shape, self.block, strict=True))

  def abstract(self, shape: tuple[int, ...]) -> dict[str, Any]:
    """What an array of this shape becomes, as shapes.

    ```python
    {'codes': int4[1536, 6144], 'scales': bf16[48, 6144]}
    ```

    Args:
      shape: Of the array.
    """
    codes = jax.ShapeDtypeStruct(shape, KINDS[self.kind].dtype)
    scales = self.scales_shape(shape)
    if not self.double:
      return {
          CODES: codes,
          SCALES: jax.ShapeDtypeStruct(scales, self.scale_dtype),
      }
    outer = tuple(1 if i == self.axis else n for i, n in enumerate(scales))
    return {
        CODES: codes,
        SCALES: {
            CODES: jax.ShapeDtypeStruct(scales, jnp.int8),
            OFFSET: jax.ShapeDtypeStruct(outer, jnp.float32),
            SCALES: jax.ShapeDtypeStruct(outer, jnp.float32),
        },
    }

  def bits_per_entry(self, shape: tuple[int, ...]) -> float:
    """Bits that an entry of the array takes, scales included."""
    leaves = jax.tree.leaves(self.abstract(shape))
    return sum(num_bits(x) for x in leaves) / math.prod(shape)


def num_bits(x: Any) -> int:
  """Bits that an array takes where codes of 4 bits lie two in a byte."""
  dtype = jnp.dtype(x.dtype)
  bits = 4 if dtype in (jnp.int4, jnp.uint4) else 8 * dtype.itemsize
  return math.prod(x.shape) * bits
