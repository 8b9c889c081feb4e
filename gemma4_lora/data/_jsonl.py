"""JSONL files as a source, beside Kauldron's own of JSON, TFDS and others."""

import dataclasses
import functools
import json
import os
from typing import Any
from typing import SupportsIndex

from etils import epath
from grain import python as grain
from kauldron import kd
import numpy as np

from gemma4_lora import host
from gemma4_lora.data.layouts import _fields
from gemma4_lora.host import _storage_errors


@dataclasses.dataclass(frozen=True)
class _JsonlSource(grain.RandomAccessDataSource):
  """Rows of a file of one JSON object per line; empty lines are none."""

  path: epath.PathLike

  def __len__(self) -> int:
    return len(self._lines)

  def __getitem__(self, index: SupportsIndex) -> Any:
    begin, end, number = self._lines[index]
    line = bytes(self._data[begin:end])
    try:
      return json.loads(line)
    except ValueError as e:  # Of JSON, or of UTF-8.
      return _fields.Broken(
          f'Line {number} of {os.fspath(self.path)} is not JSON ({e}):'
          f' {line!r:.200}'
      )

  @functools.cached_property
  def _data(self) -> Any:
    path = host.path(self.path, who='Jsonl').expanduser()
    if host.is_local(path) and path.stat().length:
      # Pages of it, as they are read; other processes share them.
      return np.memmap(path, dtype=np.uint8, mode='r')
    with _storage_errors.explained(path, who='Jsonl'):
      return np.frombuffer(path.read_bytes(), np.uint8)

  @functools.cached_property
  def _lines(self) -> np.ndarray:
    """i64 `[N, 3]`: where each row begins and ends, and its line's number."""
    ends = np.flatnonzero(self._data == ord('\n'))
    if not ends.size or ends[-1] != len(self._data) - 1:
      ends = np.append(ends, len(self._data))
    begins = np.concatenate([[0], ends[:-1] + 1])
    numbers = np.arange(1, len(ends) + 1)
    lines = np.stack([begins, ends, numbers], axis=1)
    is_row = [bool(bytes(self._data[b:e]).strip()) for b, e, _ in lines]
    return lines[np.array(is_row, bool)]

  def __getstate__(self) -> dict[str, Any]:
    # Worker processes map the file themselves.
    return {k: v for k, v in self.__dict__.items() if k != '_data'}


@dataclasses.dataclass(frozen=True)
class Jsonl(kd.data.py.DataSourceBase):
  """`kd.data.py.Json` for files of one JSON object per line.

  ```python
  train_ds=g4.data.Jsonl(
      path="chats.jsonl", shuffle=True, batch_size=16, transforms=[...]
  )
  ```

  The file is mapped, not loaded. A line that is no JSON is a malformed row for
  `ChatTask`.

  Attributes:
    path: The file's path, here or in a bucket.
  """

  path: epath.PathLike

  @functools.cached_property
  def data_source(  # pyrefly: ignore[bad-override]: as Kauldron's own.
      self,
  ) -> grain.RandomAccessDataSource:
    return _JsonlSource(path=self.path)
