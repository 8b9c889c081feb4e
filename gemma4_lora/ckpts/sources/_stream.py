"""Reads arrays of Orbax without a second copy, whole or row by row.

Released checkpoints have one compressed chunk per array, and E2B's largest is
half of the model. tensorstore holds a chunk twice to read any part of it,
decompressed and as it is in the file. Here it is decompressed as a stream, from
its place in the file, here or in a bucket, straight into the array's memory.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
import io
import json
import math
from typing import Any
from typing import Protocol

from etils import epath
import ml_dtypes
import numpy as np
import tensorstore as ts
import zstandard

from gemma4_lora.ckpts.sources import _integrity
from gemma4_lora.host import _memory
from gemma4_lora.host.ranges import _ranges

# Tensorstore reads parts of chunks up to this size well enough.
_SMALL_BYTES = 2**26
# Sizes of pieces: of skipped rows and of read rows that are decompressed at
# once, and of the file that is read for it.
_SKIP_BYTES = 2**20
_DECODE_BYTES = 2**24
_READ_BYTES = 2**22
# What is looked at, as soon as it is decompressed.
_LOOK_BYTES = 2**21

_SPEC = '.zarray'


class Rows(Protocol):
  """An array of a checkpoint."""

  def read(self, start: int, stop: int) -> np.ndarray:
    """Reads rows; fastest if they follow the rows that were read last."""


def open_rows(directory: epath.Path, name: str) -> Rows | None:
  """Opens an array of an Orbax checkpoint.

  Args:
    directory: The checkpoint's directory.
    name: Name of the array in the checkpoint.

  Returns:
    None if rows cannot be read separately; Orbax's own files allow it.
  """
  has_index = _integrity.has_index(directory)
  kvstore = _integrity.kvstore(directory if has_index else directory / name)
  if has_index:
    kvstore = {'driver': 'ocdbt', 'base': kvstore, 'path': f'{name}/'}
  try:
    array = ts.open({'driver': 'zarr', 'kvstore': kvstore}, open=True).result()
  except (ValueError, OSError):
    return None  # Zarr's third version. Other code finds damage.
  spec = array.spec().to_json()['metadata']
  if _num_bytes(spec['chunks'], array.dtype.numpy_dtype) <= _SMALL_BYTES:
    return _Small(array)
  if tuple(spec['chunks'][1:]) != tuple(spec['shape'][1:]) or not _is_plain(
      spec
  ):
    return None
  chunks = _places(directory, name, spec, has_index=has_index)
  if chunks is None:
    return None
  return Streamed(
      shape=tuple(spec['shape']),
      dtype=array.dtype.numpy_dtype,
      chunk_rows=spec['chunks'][0],
      chunks=chunks,
      is_compressed=spec['compressor'] is not None,
  )


def list_whole(directory: epath.Path) -> dict[str, 'Streamed']:
  """Returns the arrays that are one chunk of a file, by Orbax's name.

  Args:
    directory: Directory of the checkpoint, on this machine or in a bucket.
  """
  if not _integrity.has_index(directory):
    return {}
  values = _integrity.values(directory)
  spans: dict[epath.Path, list[tuple[int, int]]] = {}
  for value in values.values():
    if isinstance(value, tuple):
      path, offset, length = value
      spans.setdefault(path, []).append((offset, offset + length))
  files = {path: _ranges.expected(path, x) for path, x in spans.items()}
  arrays = {}
  for key, value in values.items():
    name, _, last = key.rpartition('/')
    if last != _SPEC or not isinstance(value, bytes):
      continue
    spec = json.loads(value)
    chunk = values.get(f'{name}/{_chunk_key(spec, 0)}')
    if isinstance(chunk, bytes):  # A small one is in the index.
      inline, place = chunk, (directory / name, 0, len(chunk))
    else:
      inline, place = None, chunk
    if (
        place is not None
        and _is_dtype(spec['dtype'])
        and spec['shape']
        and spec['chunks'] == spec['shape']
        and _is_plain(spec)
    ):
      arrays[name] = Streamed(
          shape=tuple(spec['shape']),
          dtype=_dtype(spec['dtype']),
          chunk_rows=spec['shape'][0],
          chunks=[place],
          is_compressed=spec.get('compressor') is not None,
          file=files.get(place[0]),
          inline=inline,
      )
  return arrays


@dataclasses.dataclass(frozen=True)
class _Small:
  """An array of many chunks."""

  array: ts.TensorStore

  def read(self, start: int, stop: int) -> np.ndarray:
    """See `Rows`."""
    return self.array[start:stop].read().result()


@dataclasses.dataclass(kw_only=True)
class Streamed:
  """An array whose chunks are cut along the first axis, if at all.

  Attributes:
    shape: The array's shape.
    dtype: The array's dtype.
    chunk_rows: How many rows a chunk has.
    chunks: File, offset and length of each chunk.
    is_compressed: Whether chunks are compressed by zstd.
    file: The file of all chunks, None if there is no more to say of it.
    inline: The bytes of the only chunk, if they are there already.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  chunk_rows: int
  chunks: list[_integrity.Place]
  is_compressed: bool
  file: _ranges.File | None = None
  inline: bytes | None = None

  _chunk: int = -1  # That is open.
  _row: int = 0  # That comes next in it.
  _file: Any = None
  _stream: Any = None
  _begun: Any = None  # Its first chunk, if that is read already.

  def read(self, start: int, stop: int) -> np.ndarray:
    """See `Rows`."""
    shape = (stop - start, *self.shape[1:])
    fill = functools.partial(self._read_into, start)
    return _memory.filled(shape, self.dtype, fill)

  def begin(
      self,
      filled: _memory.Filled = _memory.filled,
      look: _memory.Look = _memory.ignore,
  ) -> Callable[[], Any]:
    """Returns what reads all rows; in a bucket, it begins to read at once.

    Args:
      filled: Makes the array.
      look: Is given each number once.
    """
    begun = None
    if self.file is not None and self.inline is None:
      _, offset, length = self.chunks[0]
      begun = self.file.open_at(offset, offset + length)

    def read_all():
      self._begun = begun
      self._seek(0, 0)  # First, as XLA may take a while to allocate memory.
      return filled(self.shape, self.dtype, fill)

    def fill(out):
      step = max(1, _LOOK_BYTES * len(out) // out.nbytes)
      for start in range(0, len(out), step):
        rows = out[start : start + step]
        self._read_into(start, rows)
        look(rows)

    return read_all

  def _read_into(self, start: int, out: np.ndarray) -> None:
    """Reads as many rows as an array has."""
    row, stop = start, start + len(out)
    while row < stop:
      chunk, first = divmod(row, self.chunk_rows)
      count = min(stop - row, self.chunk_rows - first)
      self._seek(chunk, first)
      self._fill(out[row - start : row - start + count])
      self._row += count
      row += count
    if stop == self.shape[0]:
      self._close()

  def _seek(self, chunk: int, row: int) -> None:
    """Opens a chunk, and skips its rows before one."""
    if chunk != self._chunk or row < self._row:
      self._close()
      path, offset, length = self.chunks[chunk]
      span = offset, offset + length
      file: Any
      if self.inline is not None:
        file = io.BytesIO(self.inline)
      elif self._begun is not None and not chunk:
        file, self._begun = self._begun, None
      elif self.file is not None:
        file = self.file.open_at(*span)
      else:
        file = _ranges.open_stream(path, *span)
      self._file = self._stream = file
      if self.is_compressed:
        self._stream = zstandard.ZstdDecompressor().stream_reader(
            file, read_size=_READ_BYTES
        )
      self._chunk = chunk
    rest = _num_bytes((row - self._row, *self.shape[1:]), self.dtype)
    while rest:
      rest -= len(self._fill(np.empty(min(rest, _SKIP_BYTES), np.uint8)))
    self._row = row

  def _fill(self, out: np.ndarray) -> np.ndarray:
    """Reads what follows into an array."""
    todo = memoryview(out.reshape(-1).view(np.uint8))
    while todo:
      try:
        count = self._stream.readinto(todo[:_DECODE_BYTES])
      except zstandard.ZstdError as e:
        raise ValueError(self._damaged(str(e))) from e
      if not count:
        raise ValueError(self._damaged('it ends too early'))
      todo = todo[count:]
    return out

  def _damaged(self, how: str) -> str:
    path, offset, _ = self.chunks[self._chunk]
    return (
        f'The checkpoint is damaged: {path}, at byte {offset}: {how}. Copy or'
        ' download it again.'
    )

  def _close(self) -> None:
    if self._file is not None:
      self._file.close()
    self._file, self._stream, self._chunk, self._row = None, None, -1, 0


def _places(
    directory: epath.Path,
    name: str,
    spec: Mapping[str, Any],
    *,
    has_index: bool,
) -> list[_integrity.Place] | None:
  """Returns the place of each chunk; None if one is missing."""
  count = math.ceil(spec['shape'][0] / spec['chunks'][0])
  keys = [f'{name}/{_chunk_key(spec, i)}' for i in range(count)]
  if has_index:
    values = _integrity.values(directory)
    found = [x for x in map(values.get, keys) if isinstance(x, tuple)]
  else:
    files = [directory / k for k in keys if (directory / k).exists()]
    found = [(file, 0, file.stat().length) for file in files]
  return found if len(found) == count else None


def _chunk_key(spec: Mapping[str, Any], i: int) -> str:
  """Returns what follows the array's name, of a chunk along the first axis."""
  rest = ['0'] * (len(spec['shape']) - 1)
  return spec.get('dimension_separator', '.').join([str(i), *rest])


def _is_plain(spec: Mapping[str, Any]) -> bool:
  """Whether chunks are the array's plain bytes, compressed by zstd or not."""
  return (
      (spec.get('compressor') or {'id': 'zstd'})['id'] == 'zstd'
      and spec.get('order') == 'C'
      and not spec.get('filters')
      and isinstance(spec['dtype'], str)
      and not spec['dtype'].startswith('>')
      and 0 not in spec['shape']
  )


def _is_dtype(name: Any) -> bool:
  try:
    return isinstance(name, str) and _dtype(name).itemsize > 0
  except (TypeError, ValueError):
    return False  # Orbax raises an error for it.


def _dtype(name: str) -> np.dtype:
  # numpy itself has no name 'int4'.
  return np.dtype(getattr(ml_dtypes, name, name))


def _num_bytes(shape: Any, dtype: np.dtype) -> int:
  return math.prod(shape) * dtype.itemsize
