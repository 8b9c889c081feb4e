"""Reads arrays of Orbax straight into their memory.

tensorstore reads the compressed bytes of an array, decodes them, and copies the
result: three times the array at its peak, and E2B's largest is half of the
model. As gemma writes them, an array is one zstd frame in one file, which can be
decoded while it is read. What is stored otherwise is left to Orbax.
"""

from collections.abc import Mapping
import dataclasses
import io
import json
import math
import os
import pathlib
from typing import Any

from etils import epath
import ml_dtypes
import numpy as np
import tensorstore as ts
import zstandard

_MANIFEST = 'manifest.ocdbt'
_SPEC = '.zarray'
# What is decoded at once; the file is read in pieces of `_READ_BYTES`.
_DECODE_BYTES = 2**24
_READ_BYTES = 2**22


@dataclasses.dataclass(frozen=True, kw_only=True)
class Array:
  """An array that is one zstd frame.

  Attributes:
    name: As Orbax names it.
    shape: Its shape.
    dtype: Its dtype.
    frame: The frame itself, if it is small; else the file.
    offset: Of the frame, in bytes from the start of the file.
  """

  name: str
  shape: tuple[int, ...]
  dtype: np.dtype
  frame: bytes | pathlib.Path
  offset: int

  def read(self) -> np.ndarray:
    """Reads and decodes it.

    Raises:
      ValueError: The data is damaged.
    """
    # Not `np.empty(shape, dtype)`, which has no buffer for bfloat16.
    size = math.prod(self.shape) * self.dtype.itemsize
    out = np.empty(size, np.uint8)
    done = 0
    try:
      with self._open() as file:
        file.seek(self.offset)
        reader = zstandard.ZstdDecompressor().stream_reader(
            file, read_size=_READ_BYTES
        )
        while done < size:
          count = reader.readinto(memoryview(out)[done : done + _DECODE_BYTES])
          if not count:
            break
          done += count
    except zstandard.ZstdError as e:
      raise ValueError(
          f'The checkpoint is damaged at {self.name}: {e}. Copy or download it'
          ' again.'
      ) from e
    if done != size:
      raise ValueError(
          f'The checkpoint is damaged at {self.name}: {done} bytes, and should'
          f' have {size}. Copy or download it again.'
      )
    return out.view(self.dtype).reshape(self.shape)

  def _open(self) -> Any:
    if isinstance(self.frame, bytes):
      return io.BytesIO(self.frame)
    return self.frame.open('rb', buffering=0)


def list_arrays(directory: epath.Path) -> Mapping[str, Array]:
  """Returns the arrays that can be read this way, by Orbax's name.

  Args:
    directory: Of the arrays. Empty if it is not on this machine.
  """
  root = pathlib.Path(os.fspath(directory))
  if '://' in os.fspath(directory) or not (root / _MANIFEST).exists():
    return {}
  base = ts.KvStore.open({'driver': 'file', 'path': f'{root}/'}).result()
  manifest: Any = ts.ocdbt.dump(base).result()
  location = manifest['versions'][-1]['root'].get('location')
  node: Any = ts.ocdbt.dump(base, location).result() if location else {}
  if node.get('height') != 0:
    return {}  # Keys are in several nodes: none of Orbax's that we have seen.
  entries = {entry['key'].decode(): entry for entry in node['entries']}
  arrays = {}
  for key, entry in entries.items():
    name, _, last = key.rpartition('/')
    if last == _SPEC and 'inline_value' in entry:
      spec = json.loads(entry['inline_value'])
      chunk = '.'.join('0' * max(len(spec['shape']), 1))
      value = entries.get(f'{name}/{chunk}')
      if value is not None and _is_one_frame(spec):
        frame, offset = _place(value, root)
        arrays[name] = Array(
            name=name,
            shape=tuple(spec['shape']),
            dtype=_dtype(spec['dtype']),
            frame=frame,
            offset=offset,
        )
  return arrays


def _is_one_frame(spec: Mapping[str, Any]) -> bool:
  compressor = spec['compressor'] or {}
  return (
      spec['zarr_format'] == 2
      and spec['chunks'] == spec['shape']
      and compressor.get('id') == 'zstd'
      and not spec['filters']
      and spec['order'] == 'C'
      and spec['dtype'][0] != '>'
      and 0 not in spec['shape']
  )


def _dtype(name: str) -> np.dtype:
  return np.dtype(ml_dtypes.bfloat16 if name == 'bfloat16' else name)


def _place(
    entry: Mapping[str, Any], root: pathlib.Path
) -> tuple[bytes | pathlib.Path, int]:
  """Returns a frame, or its file, and the offset in it."""
  if 'inline_value' in entry:
    return entry['inline_value'], 0
  # "value:<folder>:<file>:<offset>:<length>"
  _, folder, file, offset, _ = entry['indirect_value'].split(':')
  return root / f'{folder}{file}', int(offset)
