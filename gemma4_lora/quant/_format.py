"""Base class of the formats, and how one array is held in a format."""

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
  """What all formats have: which parts of the base are held in it.

  A subclass says all that is known of its format. It has a file of its own, and
  a line in `_formats.FORMATS`.

  Attributes:
    select: Strings and rules as in `g4.targets`, or `'all'`: every linear,
      routed experts and towers included, and the embeddings. Norms, scalars
      and the router stay as they are.
    kind: The format's name: users may write `quantize='int8'`.
    codes_name: Key of the codes beside their scales. Name and dtype of the codes
      tell the format, in memory and in files.
    codes_dtype: Dtype of the codes.
    stored_dtype: Dtype of the codes in files, where tensorstore lacks theirs;
      None where it has it.
    default_scale_dtype: Dtype of the scales where the user chooses none.
    has_grid: Whether weights that are a code times a scale lose nothing.
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
    """Returns what codes stand for, before their scale: integers, themselves."""
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
  """How one array is held in a format.

  Attributes:
    format: The format.
    block: Per axis of the array, how many neighbours share a scale.
    scale_dtype: Dtype of the scales.
    scales_format: The format of the scales in turn; None for plain scales.
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
    """Whether the scales are quantised in turn."""
    return self.scales_format is not None

  @property
  def text(self) -> str:
    """How the array is held, for people: `'int4, groups of 32'`."""
    return self.format.describe(self)

  @property
  def constructor(self) -> str:
    """What a user would write: `'g4.quant.Int4(group_size=32)'`."""
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
    """How scales of a shape are held in turn: around the mean along `axis`."""
    if self.scales_format is None:
      return None
    block = tuple(n if i == self.axis else 1 for i, n in enumerate(shape))
    return Encoding(
        format=self.scales_format,
        block=block,
        scale_dtype=jnp.dtype(self.scales_format.default_scale_dtype),
    )

  def abstract(self, shape: tuple[int, ...]) -> dict[str, Any]:
    """What an array of this shape becomes, as shapes.

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
  """Bits that an array takes where codes of 4 bits lie two in a byte."""
  dtype = jnp.dtype(x.dtype)
  is_integer = jnp.issubdtype(dtype, jnp.integer)
  bits = jnp.iinfo(dtype).bits if is_integer else 8 * dtype.itemsize
  return math.prod(x.shape) * bits
