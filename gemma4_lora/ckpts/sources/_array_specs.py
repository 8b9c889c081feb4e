"""Compares zarr's metadata of an array with the bytes on disk.

tensorstore allocates a chunk of the size in the metadata, and ends the process
if there is not enough memory. This module first finds sizes that the files
cannot hold.
"""

from collections.abc import Mapping
import dataclasses
import itertools
import math
from typing import Any

from etils import epath
import ml_dtypes
import numpy as np

from gemma4_lora.host.files import _json_objects
from gemma4_lora.host.files import _regular

# By the version of zarr.
NAMES = ('.zarray', 'zarr.json')
# zstd makes at least 4 bytes of each block, of up to 2**17.
_MOST_RATIO = 2**15
_SMALL_BYTES = 2**26
# One file each. Those of large models have some thousands.
_MOST_CHUNKS = 2**17
_MOST_AXES = 32
_MOST = 2**62


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArraySpec:
  """An array of zarr.

  Attributes:
    where: Its file, for messages.
    shape: Its shape.
    chunks: Shape of a chunk, which is a file or a value.
    itemsize: Bytes of a number.
    separator: The separator between the numbers of a chunk.
    is_third: Whether it is in zarr's third version.
  """

  where: str
  shape: tuple[int, ...]
  chunks: tuple[int, ...]
  itemsize: int
  separator: str
  is_third: bool

  @property
  def counts(self) -> tuple[int, ...]:
    """How many chunks there are along each axis."""
    return tuple(
        math.ceil(n / c) for n, c in zip(self.shape, self.chunks, strict=True)
    )

  def files(self, folder: epath.Path) -> list[epath.Path]:
    """Returns the files of all chunks.

    Args:
      folder: The array's folder.
    """
    root = folder / 'c' if self.is_third else folder
    if (
        not self.shape
    ):  # A scalar: one chunk, "0" or, in the third version, "c".
      return [root if self.is_third else folder / '0']
    return [
        root / self.separator.join(map(str, index))
        for index in itertools.product(*map(range, self.counts))
    ]

  def check_bytes(self, stored: int, *, who: str) -> None:
    """Checks that the files can hold an array of this size.

    Args:
      stored: How many bytes they have.
      who: What asks, for messages.

    Raises:
      ValueError: They cannot.
    """
    for name, shape in (('shape', self.shape), ('chunks', self.chunks)):
      said = math.prod(shape) * self.itemsize
      if said > max(_SMALL_BYTES, _MOST_RATIO * stored):
        raise ValueError(
            f'{who}: {self.where} is damaged: by its {name} {list(shape)} there'
            f' would be {said} bytes, which the {stored} bytes on disk cannot hold.'
            ' Copy or download the checkpoint again.'
        )


def parse(data: bytes, *, name: str, where: str, who: str) -> ArraySpec:
  """Reads `.zarray` or `zarr.json`.

  Args:
    data: What the file holds.
    name: Which of both.
    where: The file, for messages.
    who: What asks, for messages.

  Raises:
    ValueError: It is damaged.
  """
  values = _json_objects.parse(data, path=where, who=who)
  is_third = name == NAMES[1]
  _check_order(values, where=where, who=who)
  chunks, dtype, separator = values.get('chunks'), values.get('dtype'), '/'
  if is_third:
    chunks = _at(values, 'chunk_grid', 'configuration', 'chunk_shape')
    dtype = values.get('data_type')
  else:
    separator = values.get('dimension_separator', '.')
    compressor = values.get('compressor')
    _check(
        compressor is None or isinstance(_at(values, 'compressor', 'id'), str),
        'compressor',
        compressor,
        where=where,
        who=who,
    )
  shape = values.get('shape')
  fits = _are_sizes(shape, 0)
  _check(fits, 'shape', shape, where=where, who=who)
  fits = _are_sizes(chunks, 1) and len(chunks or ()) == len(shape or ())
  _check(fits, 'shape of chunks', chunks, where=where, who=who)
  _check(isinstance(dtype, (str, list)), 'dtype', dtype, where=where, who=who)
  _check(separator in ('.', '/'), 'separator', separator, where=where, who=who)
  spec = ArraySpec(
      where=where,
      shape=tuple(shape or ()),
      chunks=tuple(chunks or ()),
      itemsize=_itemsize(dtype),
      separator=separator,
      is_third=is_third,
  )
  count = math.prod(spec.counts)
  if count > _MOST_CHUNKS:
    raise ValueError(
        f'{who}: {where} is damaged: by its shape {shape} and chunks {chunks}'
        f' there would be {count} chunks. Copy or download the checkpoint again.'
    )
  return spec


def _check_order(values: Mapping[str, Any], *, where: str, who: str) -> None:
  """Raises if the order of axes or bytes is not Orbax's."""
  order, filters = values.get('order', 'C'), values.get('filters')
  _check(order == 'C', 'order', order, where=where, who=who)
  _check(not filters, 'filters', filters, where=where, who=who)
  dtype = values.get('dtype')
  is_big = isinstance(dtype, str) and dtype.startswith('>')
  _check(not is_big, 'dtype', dtype, where=where, who=who)
  todo = [values.get('codecs')]
  while todo:
    codecs = todo.pop()
    for codec in codecs if isinstance(codecs, list) else ():
      settings = _at(codec, 'configuration')
      is_other = _at(codec, 'name') == 'transpose'
      is_other = is_other or _at(settings, 'endian') == 'big'
      _check(not is_other, 'codecs', codecs, where=where, who=who)
      todo += [_at(settings, x) for x in ('codecs', 'index_codecs')]


def _at(values: Any, *names: str) -> Any:
  for name in names:
    values = values.get(name) if isinstance(values, Mapping) else None
  return values


def _are_sizes(value: Any, least: int) -> bool:
  return (
      isinstance(value, list)
      and len(value) <= _MOST_AXES
      and all(type(n) is int and least <= n <= _MOST for n in value)
  )


def _itemsize(dtype: Any) -> int:
  try:
    return np.dtype(getattr(ml_dtypes, dtype, dtype)).itemsize
  except (TypeError, ValueError):
    return 1  # tensorstore says what is wrong with it.


def _check(fits: bool, name: str, value: Any, *, where: str, who: str) -> None:
  if not fits:
    raise ValueError(
        f'{who}: {where} is damaged: its {name} cannot be'
        f' {_regular.shown(value)}. Copy or download the checkpoint again.'
    )
