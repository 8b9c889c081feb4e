"""Safetensors files: listed at once, then mapped, or loaded from where they are.

The format: 8 bytes of length, a JSON header of that length with dtype, shape and
offsets of each tensor, then the data.
https://github.com/huggingface/safetensors#format
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import json
import math
from typing import Any

from etils import epath
import numpy as np

from gemma4_lora.host import _memory
from gemma4_lora.host import _ranges
from gemma4_lora.host import _tensors_in_memory
from gemma4_lora.host import _threads

INDEX = '.safetensors.index.json'
_SUFFIX = '.safetensors'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
  """A tensor in a file.

  Attributes:
    file: The file.
    offset: Where its data starts, in bytes from the start of the file.
    shape: Its shape.
    dtype: Its dtype.
  """

  file: _ranges.File
  offset: int
  shape: tuple[int, ...]
  dtype: np.dtype

  def read(self) -> np.ndarray:
    """Maps the data: no byte is read before it is looked at.

    In a bucket nothing can be mapped: there it is loaded.
    """
    if not self.file.is_local:
      return self.load()
    if not self.shape or 0 in self.shape:  # Cannot be mapped.
      return self.load()
    return np.memmap(
        self.file.path,
        self.dtype,
        mode='r',
        offset=self.offset,
        shape=self.shape,
    )

  def load(self) -> np.ndarray:
    """Reads the data into memory of its own."""
    return self.begin()()

  def begin(self, filled: _memory.Filled = _memory.filled) -> Callable[[], Any]:
    """Returns what loads the data; in a bucket, it begins to read at once.

    Args:
      filled: Makes the array.
    """
    read_into = self.open().read_into
    return lambda: filled(self.shape, self.dtype, read_into)

  def open(self, start: int = 0) -> _ranges.Reader:
    """Returns what reads the data; in a bucket, it begins to read at once.

    Args:
      start: How many numbers to skip.
    """
    end = self.offset + math.prod(self.shape) * self.dtype.itemsize
    return self.file.open_at(self.offset + start * self.dtype.itemsize, end)


def list_tensors(path: epath.Path, *, who: str) -> dict[str, Tensor]:
  """Lists the tensors of a file, of an index, or of a folder with either.

  Args:
    path: `model.safetensors`, `model.safetensors.index.json`, or the folder.
    who: The function that asks, for messages.

  Raises:
    FileNotFoundError: The folder has neither, or the index names a file that is
      not there.
    ValueError: A file is truncated or no safetensors file, or the folder holds
      something else.
  """
  if path.is_dir():
    path = _in_folder(path, who=who)
  if not path.name.endswith(INDEX):
    return _list_file(path, who=who)
  shards = _json(path, path.read_text(), who=who).get('weight_map')
  if not isinstance(shards, Mapping):
    raise ValueError(f'{who}: {path} has no weight_map.')
  tensors = {}

  def listed_in(name):
    file = path.parent / name
    if not file.exists():
      raise FileNotFoundError(
          f'{who}: {path} names {name}, which is not there.'
      )
    return name, _list_file(file, who=who)

  names = sorted(set(shards.values()))
  # At once, as each file of a bucket takes its time to answer.
  for name, listed in _threads.in_order(
      listed_in, names, limit=_ranges.NUM_READERS
  ):
    lacking = [k for k, v in shards.items() if v == name and k not in listed]
    if lacking:
      raise ValueError(
          f'{who}: {path} says that {len(lacking)} tensors are in {name}, which'
          f' does not have them: {lacking[:3]}.'
      )
    tensors |= listed
  return tensors


def _in_folder(path: epath.Path, *, who: str) -> epath.Path:
  """Returns the index or the file of a folder."""
  names = sorted(x.name for x in path.iterdir())
  if 'adapter_model.safetensors' in names and 'model.safetensors' not in names:
    raise ValueError(
        f'{who}: {path} holds LoRA of PEFT, not base weights: load it by'
        ' g4.hf.load_peft.'
    )
  indices = [n for n in names if n.endswith(INDEX)]
  files = [n for n in names if n.endswith(_SUFFIX)]
  for kind in (indices, files):
    if len(kind) == 1:
      return path / kind[0]
    if len(kind) > 1:
      raise ValueError(
          f'{who}: {path} has several of them, give the one: {kind[:4]}.'
      )
  raise FileNotFoundError(f'{who}: {path} has no safetensors. It has: {names}.')


def _list_file(path: epath.Path, *, who: str) -> dict[str, Tensor]:
  """Lists the tensors of one file, once it is known to be whole."""
  file = _ranges.open_file(path)
  size = file.size
  length = 0
  if size >= 8:
    length = int.from_bytes(_ranges.read(file, 0, 8), 'little')
  if size < 8 + length or length < 2:
    raise ValueError(_damaged(path, size, 8 + length, who=who))
  text = _ranges.read(file, 8, 8 + length).decode('utf8', 'replace')
  header = _json(path, text, who=who)
  header.pop('__metadata__', None)
  tensors, end = {}, 8 + length
  for name, entry in header.items():
    if entry['dtype'] not in _tensors_in_memory.DTYPES:
      raise ValueError(
          f'{who}: {path}: {name} has dtype {entry["dtype"]}, which is not'
          f' among {sorted(_tensors_in_memory.DTYPES)}: unknown packed format'
          f'{_looks_like(entry["dtype"])}. Give weights that are not quantised.'
      )
    start, stop = entry['data_offsets']
    end = max(end, 8 + length + stop)
    tensors[name] = Tensor(
        file=file,
        offset=8 + length + start,
        shape=tuple(entry['shape']),
        dtype=np.dtype(_tensors_in_memory.DTYPES[entry['dtype']]),
    )
  if size < end:
    raise ValueError(_damaged(path, size, end, who=who))
  return tensors


def _looks_like(dtype: str) -> str:
  if dtype == 'U32':
    return ': it looks like MLX'
  return ': 8-bit floats' if dtype.startswith('F8') else ''


def _json(path: epath.Path, text: str, *, who: str) -> dict:
  try:
    return json.loads(text)
  except json.JSONDecodeError as e:
    raise ValueError(
        f'{who}: {path} is damaged, or no file of Hugging Face: {e}.'
    ) from e


def _damaged(path: epath.Path, size: int, end: int, *, who: str) -> str:
  return (
      f'{who}: the checkpoint is truncated: {path} has {size} bytes, and should'
      f' have {end}. Copy or download it again.'
  )
