"""Safetensors files: listed first, then mapped or loaded."""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping
import dataclasses
import functools
import math
import re
from typing import Any

from etils import epath
import numpy as np

from gemma4_lora.host import _memory
from gemma4_lora.host import _threads
from gemma4_lora.host.files import _json_objects
from gemma4_lora.host.files import _regular
from gemma4_lora.host.files import _safetensors_header
from gemma4_lora.host.ranges import _ranges

INDEX = '.safetensors.index.json'
_SUFFIX = '.safetensors'
# Files of a bucket whose headers are read.
_NUM_AT_ONCE = 32
_SHARD = re.compile(
    r'(?P<name>.+)-\d{1,9}-of-(?P<count>\d{1,9})\.safetensors', re.ASCII
)


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

  @property
  def end(self) -> int:
    """The byte after its data."""
    return self.offset + math.prod(self.shape) * self.dtype.itemsize

  def read(self) -> np.ndarray:
    """Maps the data: bytes are read when they are used.

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
    """Reads the data into new memory."""
    return self.begin()()

  def begin(self, filled: _memory.Filled = _memory.filled) -> Callable[[], Any]:
    """Returns a loader of the data; in a bucket, it starts to read at once.

    Args:
      filled: Makes the array.
    """
    read_into = self.open().read_into
    return lambda: filled(self.shape, self.dtype, read_into)

  def open(self, start: int = 0) -> _ranges.Reader:
    """Returns a reader of the data; in a bucket, it starts to read at once.

    Args:
      start: How many numbers to skip.
    """
    first = self.offset + start * self.dtype.itemsize
    return self.file.open_at(first, self.end)


def list_tensors(
    path: epath.Path, *, names: Collection[str] | None = None, who: str
) -> dict[str, Tensor]:
  """Lists the tensors of a file, of an index, or of a folder with either.

  If an index names a tensor's file, the same tensor in other files is ignored.

  Args:
    path: `model.safetensors`, `model.safetensors.index.json`, or the folder.
    names: What the folder has, if that is known.
    who: The function that asks, for messages.

  Raises:
    FileNotFoundError: The folder has neither, or the index names a file that is
      not there.
    ValueError: A file is truncated or no safetensors file, a tensor is in two
      files, or the folder holds something else.
  """
  if names is None and path.is_dir():
    names = [x.name for x in path.iterdir()]
  if names is not None:
    path = _in_folder(path, sorted(names), who=who)
  if not path.name.endswith(INDEX):
    _check_is_alone(path, [path.name], who=who)
    return _list_file(path, who=who)
  by_file = _by_file(path, who=who)
  chosen = {key: name for name, keys in by_file.items() for key in keys}

  def listed_in(name):
    file = path.parent / name
    if not file.exists():
      raise FileNotFoundError(
          f'{who}: {path} names {_regular.shown(name)}, which is not there.'
      )
    return name, _list_file(file, who=who)

  tensors: dict[str, Tensor] = {}
  # At once, as each file of a bucket takes its time to answer.
  for name, listed in _threads.in_order(
      listed_in, sorted(by_file), limit=_NUM_AT_ONCE
  ):
    lacking = [k for k in by_file[name] if k not in listed]
    if lacking:
      raise ValueError(
          f'{who}: {path} says that {len(lacking)} tensors are in {name}, which'
          f' does not have them: {lacking[:3]}.'
      )
    for key, tensor in listed.items():
      if chosen.get(key, name) != name:
        continue
      if key in tensors:
        raise ValueError(
            f'{who}: {_regular.shown(key)} stands in {tensors[key].file.path} and'
            f' in {tensor.file.path}, and {path} does not say which counts.'
        )
      tensors[key] = tensor
  return tensors


def _by_file(path: epath.Path, *, who: str) -> dict[str, list[str]]:
  """Returns the names of tensors by that of their file, as an index has them."""
  values = _json_objects.read(path, who=who)
  if not isinstance(shards := values.get('weight_map'), Mapping):
    raise ValueError(f'{who}: {path} has no weight_map.')
  by_file: dict[str, list[str]] = {}
  for key, name in shards.items():
    # Only a file name: an index must not lead to other folders.
    is_name = isinstance(name, str) and not {*'/\\\0'} & {*name}
    if not is_name or name in ('', '.', '..'):
      raise ValueError(
          f'{who}: {path}: weight_map has {_regular.shown(name)} for'
          f' {_regular.shown(key)}, which is no name of a file beside it.'
      )
    by_file.setdefault(name, []).append(key)
  return by_file


def _in_folder(path: epath.Path, names: list[str], *, who: str) -> epath.Path:
  """Returns the index or the file of a folder, given what it has."""
  if 'adapter_model.safetensors' in names and 'model.safetensors' not in names:
    raise ValueError(
        f'{who}: {path} holds LoRA of PEFT, not base weights: load it by'
        ' g4.hf.load_peft.'
    )
  indices = [n for n in names if n.endswith(INDEX)]
  files = [n for n in names if n.endswith(_SUFFIX)]
  if not indices:
    _check_is_alone(path, files, who=who)
  for kind in (indices, files):
    if len(kind) == 1:
      return path / kind[0]
    if len(kind) > 1:
      raise ValueError(
          f'{who}: {path} has several of them, give the one: {kind[:4]}.'
      )
  raise FileNotFoundError(f'{who}: {path} has no safetensors. It has: {names}.')


def _check_is_alone(path: epath.Path, names: list[str], *, who: str) -> None:
  """Raises for shards without their index."""
  shards = [
      m for m in map(_SHARD.fullmatch, names) if m and int(m['count']) > 1
  ]
  if shards:
    index = f'{shards[0]["name"]}{INDEX}'
    raise ValueError(
        f'{who}: {path}: {len(shards)} of {int(shards[0]["count"])} shards of a'
        f' checkpoint, without {index}, which says what is where. Download the'
        ' index and all shards into one folder, and give the folder.'
    )


def _list_file(path: epath.Path, *, who: str) -> dict[str, Tensor]:
  """Lists the tensors of one file, once it is known to be whole."""
  _regular.check(path, who=who)
  file = _ranges.open_file(path)
  read = functools.partial(_ranges.read, file)
  header = _safetensors_header.read(read, file.size, path=path, who=who)
  tensors = {
      name: Tensor(file=file, offset=x.start, shape=x.shape, dtype=x.dtype)
      for name, x in header.entries.items()
  }
  file.expect((x.offset, x.end) for x in tensors.values())
  return tensors
