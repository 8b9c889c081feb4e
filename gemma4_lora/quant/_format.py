"""Base class of the formats, and the encoding of one array."""

import abc
from collections.abc import Sequence
import dataclasses
import math
from typing import Any
from typing import ClassVar

import jax
import jax.numpy as jnp

ALL = 'all'
ARGUMENT = 'quantize'
SCALES, OFFSET = 'scales', 'offset'


def is_codes(key: Any) -> bool:
  """Whether a key of the parameters names codes, also of an unknown format."""
  return isinstance(key, str) and (key == 'codes' or key.endswith('_codes'))


@dataclasses.dataclass(frozen=True)
class Format(abc.ABC):
  """Base of all formats: selects the parts of the base to hold in it.

  A subclass has everything about its format. It has its own file, and a line in
  `_formats.FORMATS`.

  Attributes:
    select: Strings and rules as in `g4.targets`, or `'all'`: every linear,
      routed experts and towers included, and the embeddings. Norms, scalars
      and the router stay as they are.
    kind: The format's name: users may write `quantize='int8'`.
    codes_name: Key of the codes beside their scales. Name and dtype of the
      codes identify the format, in memory and in files.
    codes_dtype: Dtype of the codes.
    stored_dtype: Dtype of the codes in files, if tensorstore lacks theirs; else
      None.
    default_scale_dtype: Dtype of the scales if the user chooses none.
    has_grid: Whether weights that are codes times scales lose nothing.
  """

  select: Any = ALL

  kind: ClassVar[str]
  codes_name: ClassVar[str] = 'codes'
  codes_dtype: ClassVar[Any]
  stored_dtype: ClassVar[Any] = None
  default_scale_dtype: ClassVar[str] = 'float32'
  has_grid: ClassVar[bool] = False

  def __post_init__(self):
    if isinstance(self.select, list):  # As JSON and configs have it.
      object.__setattr__(self, 'select', tuple(self.select))

  def encoding(
      self, shape: tuple[int, ...], in_axes: Sequence[int], *, name: str
  ) -> 'Encoding':
    """Returns how one array is quantised.

    Args:
      shape: Shape of the array.
      in_axes: Axes that are summed over in its product; of a table, those of a
        row.
      name: Name of the array, for messages.

    Raises:
      ValueError: Groups do not divide it.
    """
    del name
    axes = frozenset(in_axes)
    return Encoding(
        format=type(self),
        block=tuple(n if i in axes else 1 for i, n in enumerate(shape)),
        scale_dtype=jnp.dtype(self.default_scale_dtype),
    )

  @classmethod
  @abc.abstractmethod
  def encode(
      cls, array: jax.Array, encoding: 'Encoding'
  ) -> tuple[jax.Array, jax.Array]:
    """Returns codes, in the array's shape, and scales of floating dtype."""

  @classmethod
  def levels(cls, codes: jax.Array, dtype: Any) -> jax.Array:
    """Returns the levels of codes, before scaling; integers are their own."""
    return codes.astype(dtype)

  @classmethod
  def describe(cls, encoding: 'Encoding') -> str:
    """Returns how an array is held, for people: `'int4, groups of 32'`."""
    del encoding
    return cls.kind

  @classmethod
  def settings(cls, encoding: 'Encoding') -> dict[str, Any]:
    """Returns the arguments of the format that give an encoding."""
    del encoding
    return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoding:
  """The encoding of one array in a format.

  Attributes:
    format: The format.
    block: Per axis of the array, how many neighbours share a scale.
    scale_dtype: Dtype of the scales.
    scales_format: The format of quantised scales; None for plain scales.
  """

  format: type[Format]
  block: tuple[int, ...]
  scale_dtype: Any
  scales_format: type[Format] | None = None

  def __str__(self) -> str:
    groups = ' x '.join(str(n) for n in self.block if n > 1) or '1'
    return f'{self.kind} in groups of {groups}, scales {self.scales_kind}'

  @property
  def kind(self) -> str:
    """Name of the format."""
    return self.format.kind

  @property
  def scales_kind(self) -> str:
    """Name of the scales' format or dtype."""
    scales = self.scales_format
    return jnp.dtype(self.scale_dtype).name if scales is None else scales.kind

  @property
  def double(self) -> bool:
    """Whether the scales are quantised too."""
    return self.scales_format is not None

  @property
  def text(self) -> str:
    """How the array is held, for people: `'int4, groups of 32'`."""
    return self.format.describe(self)

  @property
  def constructor(self) -> str:
    """The user's spelling: `'g4.quant.Int4(group_size=32)'`."""
    settings = self.format.settings(self).items()
    arguments = ', '.join(f'{key}={value!r}' for key, value in settings)
    return f'g4.quant.{self.format.__name__}({arguments})'

  @property
  def axis(self) -> int:
    """The axis along which neighbours share a scale; the last of several."""
    shared = [i for i, n in enumerate(self.block) if n > 1]
    return shared[-1] if shared else len(self.block) - 1

  def scales_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the scales."""
    return tuple(n // b for n, b in zip(shape, self.block, strict=True))

  def of_scales(self, shape: tuple[int, ...]) -> 'Encoding | None':
    """The encoding of quantised scales: around the mean along `axis`."""
    if self.scales_format is None:
      return None
    block = tuple(n if i == self.axis else 1 for i, n in enumerate(shape))
    return Encoding(
        format=self.scales_format,
        block=block,
        scale_dtype=jnp.dtype(self.scales_format.default_scale_dtype),
    )

  def abstract(self, shape: tuple[int, ...]) -> dict[str, Any]:
    """The quantised form of an array of this shape, as shapes.

    ```python
    {'codes': int4[1536, 6144], 'scales': bf16[48, 6144]}
    ```

    Args:
      shape: Shape of the array.
    """
    outer = self.scales_shape(shape)
    scales: Any = jax.ShapeDtypeStruct(outer, self.scale_dtype)
    if (inner := self.of_scales(outer)) is not None:
      offset = jax.ShapeDtypeStruct(inner.scales_shape(outer), jnp.float32)
      scales = inner.abstract(outer) | {OFFSET: offset}
    codes = jax.ShapeDtypeStruct(shape, self.format.codes_dtype)
    return {self.format.codes_name: codes, SCALES: scales}

  def bits_per_entry(self, shape: tuple[int, ...]) -> float:
    """Bits that an entry of the array takes, scales included."""
    leaves = jax.tree.leaves(self.abstract(shape))
    return sum(num_bits(x) for x in leaves) / math.prod(shape)


def num_bits(x: Any) -> int:
  """Bits of an array, with two 4-bit codes in a byte."""
  dtype = jnp.dtype(x.dtype)
  is_integer = jnp.issubdtype(dtype, jnp.integer)
  bits = jnp.iinfo(dtype).bits if is_integer else 8 * dtype.itemsize
  return math.prod(x.shape) * bits
