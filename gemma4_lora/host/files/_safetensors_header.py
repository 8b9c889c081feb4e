"""Reads the header of a safetensors file, and checks every rule of it.

8 bytes have its length. It is JSON with dtype, shape and offsets of each tensor;
the data follows, of one tensor after another, to the end of the file.
https://github.com/huggingface/safetensors#format
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import os
from typing import Any

from etils import epath
import ml_dtypes
import numpy as np

from gemma4_lora.host.files import _json_objects
from gemma4_lora.host.files import _regular

# By the names in a header.
DTYPES = {
    'F64': np.float64,
    'F32': np.float32,
    'F16': np.float16,
    'BF16': ml_dtypes.bfloat16,
    'I64': np.int64,
    'I32': np.int32,
    'I16': np.int16,
    'I8': np.int8,
    'U8': np.uint8,
    'BOOL': np.bool_,
}
# As in the library `safetensors`.
MAX_BYTES = 100_000_000
_METADATA = '__metadata__'
# How much of an invalid header a message shows.
_SHOWN_BYTES = 60
_MOST = 2**63 - 1
# Fewer than any NumPy can have.
_MOST_AXES = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
  """A tensor.

  Attributes:
    dtype: Its dtype.
    shape: Its shape.
    start: Where its data starts, in bytes from the start of the file.
    stop: Where its data ends.
  """

  dtype: np.dtype
  shape: tuple[int, ...]
  start: int
  stop: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
  """The content of a header.

  Attributes:
    entries: Tensors by name.
    metadata: The writer's notes.
  """

  entries: Mapping[str, Entry]
  metadata: Mapping[str, str]


def read(
    read_range: Callable[[int, int], bytes],
    size: int,
    *,
    path: epath.PathLike,
    who: str = '',
) -> Header:
  """Reads a header, and checks it.

  Args:
    read_range: Returns the bytes of the file from one position to another.
    size: The file's size in bytes.
    path: The file's path, for messages.
    who: What asks, for messages.

  Raises:
    ValueError: The file is truncated, something else, or breaks a rule of the
      format; names the tensor, what the header says and what would fit.
  """
  start = f'{who}: ' if who else ''
  where = f'{start}{os.fspath(path)}'
  head = read_range(0, min(size, _regular.HEAD_BYTES))
  if (other := _regular.what_else(head)) is not None:
    raise ValueError(f'{where} is no safetensors file: {other}')
  length = int.from_bytes(head[:8], 'little')
  # Before the size: a text in place of the file is not one that was cut short.
  if size >= 8 and not 2 <= length <= MAX_BYTES:
    raise ValueError(
        f'{where} is damaged, or no safetensors file: it begins with'
        f' {head[:_SHOWN_BYTES]!r}, by which its header would have {length}'
        f' bytes; 2 to {MAX_BYTES} are allowed.'
    )
  if size < 8 or size < 8 + length:
    raise ValueError(_truncated(start, path, size, 8 + length))
  text = read_range(8, 8 + length)
  if not text.startswith(b'{'):
    raise ValueError(
        f'{where} is damaged, or no safetensors file: its header begins with'
        f' {text[:8]!r}, not with an object of JSON.'
    )
  values = _json_objects.parse(text, path=path, who=who)
  metadata = values.pop(_METADATA, None) or {}
  if not isinstance(metadata, dict) or not all(
      isinstance(x, str) for x in metadata.values()
  ):
    raise ValueError(
        f'{where}: {_METADATA} of the header takes strings by name. Got:'
        f' {_regular.shown(metadata)}'
    )
  entries = {}
  for name, value in values.items():
    try:
      entries[name] = _entry(value, 8 + length)
    except ValueError as e:
      raise ValueError(f'{where}: {_regular.shown(name)} {e}') from None
  end = max((x.stop for x in entries.values()), default=8 + length)
  if size < end:
    raise ValueError(_truncated(start, path, size, end))
  _check_places(entries, 8 + length, size, where=where)
  return Header(entries=entries, metadata=metadata)


def _entry(value: Any, offset: int) -> Entry:
  """Returns one tensor; errors continue the tensor's name."""
  fields = value if isinstance(value, dict) else {}
  dtype, shape = fields.get('dtype'), _counts(fields.get('shape'))
  offsets = _counts(fields.get('data_offsets'))
  if not isinstance(dtype, str) or dtype not in DTYPES:
    raise ValueError(
        f'has dtype {_regular.shown(dtype)}, which is not among'
        f' {sorted(DTYPES)}{_looks_like(dtype)}. Give weights that are not'
        ' quantised.'
    )
  if shape is None or len(shape) > _MOST_AXES:
    raise ValueError(
        f'has shape {_regular.shown(fields.get("shape"))}, which must be a list of at most'
        f' {_MOST_AXES} non-negative integers.'
    )
  if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
    raise ValueError(
        f'has data_offsets {_regular.shown(fields.get("data_offsets"))}, which must be two'
        ' non-negative integers, the start and then the end.'
    )
  itemsize = np.dtype(DTYPES[dtype]).itemsize
  wanted = itemsize
  for n in shape:
    if n and wanted > _MOST // n:
      raise ValueError(
          f'has shape {_regular.shown(shape)}, which no memory can hold.'
      )
    wanted *= n or 1
  wanted = 0 if 0 in shape else wanted
  if offsets[1] - offsets[0] != wanted:
    raise ValueError(
        f'has {offsets[1] - offsets[0]} bytes by its data_offsets'
        f' {_regular.shown(offsets)}, and {wanted} by its shape'
        f' {_regular.shown(shape)} of {dtype}: the header contradicts itself.'
    )
  return Entry(
      dtype=np.dtype(DTYPES[dtype]),
      shape=tuple(shape),
      start=offset + offsets[0],
      stop=offset + offsets[1],
  )


def _counts(value: Any) -> list[int] | None:
  """Returns a list of non-negative integers, None if it is something else."""
  is_counts = isinstance(value, list) and all(
      isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= _MOST
      for n in value
  )
  return value if is_counts else None


def _check_places(
    entries: Mapping[str, Entry], first: int, size: int, *, where: str
) -> None:
  """Raises unless tensors fill the file, one after the other."""
  at, before = first, None
  for name in sorted(
      entries, key=lambda k: (entries[k].start, entries[k].stop)
  ):
    entry = entries[name]
    if entry.start != at:
      what = 'overlap' if entry.start < at else 'have a hole between them'
      behind = _regular.shown(before) if before is not None else 'the header'
      raise ValueError(
          f'{where}: {behind} and {_regular.shown(name)} {what}: one ends at byte'
          f' {at} of the file, and the other starts at {entry.start}. The header'
          ' is damaged: download the file again.'
      )
    at, before = entry.stop, name
  if at != size:
    raise ValueError(
        f'{where} has {size} bytes, and by its header {at}: what follows is no'
        ' tensor. The file is damaged: download it again.'
    )


def _looks_like(dtype: Any) -> str:
  if dtype == 'U32':
    return ': unknown packed format: it looks like MLX'
  if isinstance(dtype, str) and dtype.startswith('F8'):
    return ': unknown packed format: 8-bit floats'
  return ''


def _truncated(start: str, path: epath.PathLike, size: int, end: int) -> str:
  return (
      f'{start}the checkpoint is truncated: {os.fspath(path)} has {size} bytes,'
      f' and should have {end}. Copy or download it again.'
  )
