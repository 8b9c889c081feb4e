"""Writes safetensors, one tensor at a time, in several files of limited size.

`_safetensors_header` describes the format. The place of each tensor is known
before the first write, so no tensor is kept in memory.
"""

from collections.abc import Mapping
import json
import math
import pathlib
from typing import Any

import numpy as np

from gemma4_lora.hf.weights import _mapped
from gemma4_lora.host.files import _safetensors_header

# That of transformers, for long.
MAX_SHARD_BYTES = 5 * 10**9
_NAME = 'model'
_NAMES = {np.dtype(v): k for k, v in _safetensors_header.DTYPES.items()}

Specs = Mapping[str, tuple[tuple[int, ...], np.dtype]]


class ShardWriter:
  """Files in a folder; each tensor is written once."""

  def __init__(
      self,
      folder: pathlib.Path,
      specs: Specs,
      *,
      max_bytes: int = MAX_SHARD_BYTES,
  ):
    """Makes the files, with headers and without data.

    Args:
      folder: Where.
      specs: Shape and dtype of each tensor, in the order in the files.
      max_bytes: The most bytes of tensors in a file. A larger tensor gets its
        own file.

    Raises:
      ValueError: A dtype that the format does not have.
    """
    self._places: dict[str, tuple[pathlib.Path, int]] = {}
    self._specs = dict(specs)
    shards = _shards(specs, max_bytes)
    for i, names in enumerate(shards):
      file = folder / f'{_NAME}.safetensors'
      if len(shards) > 1:
        file = folder / f'{_NAME}-{i + 1:05}-of-{len(shards):05}.safetensors'
      self._make(file, {name: specs[name] for name in names})
    if len(shards) > 1:
      self._write_index(folder)

  def write(
      self, name: str, array: np.ndarray, *, first: int | None = None
  ) -> None:
    """Writes the data of a tensor; memory for a copy only if it is transposed.

    Args:
      name: The tensor's name.
      array: All of it.
      first: If it is only some rows: the first of them.

    Raises:
      ValueError: It is not as announced.
    """
    shape, dtype = self._specs[name]
    fits = array.shape == shape
    if first is not None:
      fits = array.shape[1:] == shape[1:] and first + len(array) <= shape[0]
    if not fits or array.dtype != dtype:
      raise ValueError(
          f'{name} is {array.dtype}{list(array.shape)}, announced as'
          f' {dtype}{list(shape)}.'
      )
    file, offset = self._places[name]
    with file.open('r+b') as f:
      f.seek(offset + (num_bytes((first, *shape[1:]), dtype) if first else 0))
      # As bytes: the buffers of numpy know no bfloat16.
      f.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

  def _make(self, file: pathlib.Path, specs: Specs) -> None:
    header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
    start = 0
    for name, (shape, dtype) in specs.items():
      stop = start + num_bytes(shape, dtype)
      header[name] = {
          'dtype': _name(name, dtype),
          'shape': list(shape),
          'data_offsets': [start, stop],
      }
      self._places[name] = (file, start)
      start = stop
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)
    for name in specs:
      self._places[name] = (file, self._places[name][1] + 8 + len(text))
    with file.open('wb') as f:
      f.write(len(text).to_bytes(8, 'little') + text)
      f.truncate(8 + len(text) + start)

  def _write_index(self, folder: pathlib.Path) -> None:
    total = sum(num_bytes(*spec) for spec in self._specs.values())
    index = {
        'metadata': {'total_size': total},
        'weight_map': {
            name: file.name for name, (file, _) in sorted(self._places.items())
        },
    }
    path = folder / f'{_NAME}{_mapped.INDEX}'
    path.write_text(json.dumps(index, indent=2))


def num_bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
  return math.prod(shape) * np.dtype(dtype).itemsize


def _shards(specs: Specs, max_bytes: int) -> list[list[str]]:
  shards, size = [[]], 0
  for name, spec in specs.items():
    if shards[-1] and size + num_bytes(*spec) > max_bytes:
      shards.append([])
      size = 0
    shards[-1].append(name)
    size += num_bytes(*spec)
  return shards


def _name(name: str, dtype: np.dtype) -> str:
  if np.dtype(dtype) not in _NAMES:
    raise ValueError(
        f'{name} is {dtype}, which safetensors here do not have: one of'
        f' {sorted(map(str, _NAMES))}.'
    )
  return _NAMES[np.dtype(dtype)]
