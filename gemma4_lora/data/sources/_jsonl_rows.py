"""Rows of one JSON object per line."""

import functools
import json
import os
from typing import Any

from etils import epath
import numpy as np

from gemma4_lora import host
from gemma4_lora.data.layouts import _fields
from gemma4_lora.data.sources import _compression
from gemma4_lora.data.sources import _local_copies

_PIECE_BYTES = 1 << 26
_BLANK = np.frombuffer(b' \t\r\n', np.uint8)


class JsonlRows:
  """Rows of a JSONL file; empty lines are not rows.

  The file is mapped: its pages are shared with other processes.

  Args:
    path: The file, here or in a bucket.
    compression: From `_compression.kind`.
    who: What asks, for messages.
  """

  def __init__(self, path: epath.Path, *, compression: str | None, who: str):
    self._path = path
    self._copy: _local_copies.LocalCopy | None = None
    if compression is not None:
      self._copy = _local_copies.LocalCopy(
          functools.partial(
              _compression.decompress, path, name=compression, who=who
          )
      )
    elif not host.is_local(path):
      self._copy = _local_copies.LocalCopy(
          functools.partial(_local_copies.fetch, path, who=who)
      )

  def __len__(self) -> int:
    return len(self._lines[0])

  def __getitem__(self, index: int) -> Any:
    begins, ends, _ = self._lines
    line = bytes(self._data[begins[index] : ends[index]])
    try:
      row = json.loads(line)
    except ValueError as e:  # Of JSON, or of UTF-8.
      return self._broken(index, 'The line is not JSON', f' ({e})', line)
    except RecursionError:
      return self._broken(index, 'The line is nested too deep', '', line)
    if not isinstance(row, dict):
      # Also None, which grain would leave out without a message.
      return self._broken(index, 'The line is no JSON object', '', line)
    return row

  def place(self, index: int) -> str:
    """Returns the place of a row, for messages."""
    _, _, blank = self._lines
    # Before it are `index` rows, and empty lines.
    number = index + 1 + int(np.searchsorted(blank, index, side='right'))
    return f'line {number} of {os.fspath(self._path)}'

  def __getstate__(self) -> dict[str, Any]:
    # Worker processes map the file themselves.
    return {k: v for k, v in self.__dict__.items() if k != '_data'}

  def _broken(
      self, index: int, what: str, why: str, line: bytes
  ) -> _fields.Broken:
    # Reasons are counted by the text before the colon.
    text = repr(line[:200])
    return _fields.Broken(f'{what}: {self.place(index)}{why}: {text:.200}')

  @functools.cached_property
  def _data(self) -> np.ndarray:
    path = self._copy.path() if self._copy else os.fspath(self._path)
    if not os.path.getsize(path):  # It cannot be mapped.
      return np.zeros(0, np.uint8)
    return np.memmap(path, dtype=np.uint8, mode='r')

  @functools.cached_property
  def _lines(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where each row begins and ends, and the empty lines.

    Returns:
      i64 `[N]`, i64 `[N]`, and of each empty line how many rows are before it.
    """
    data = self._data
    ends = np.concatenate(
        [
            np.zeros(0, np.int64),
            *(
                np.flatnonzero(data[i : i + _PIECE_BYTES] == ord('\n')) + i
                for i in range(0, len(data), _PIECE_BYTES)
            ),
        ]
    )
    if len(data) and data[-1] != ord('\n'):
      ends = np.append(ends, len(data))
    begins = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    is_row = np.ones(len(ends), bool)
    starts = data[np.minimum(begins, max(len(data) - 1, 0))]
    for i in np.flatnonzero((begins == ends) | np.isin(starts, _BLANK)):
      is_row[i] = bool(bytes(data[begins[i] : ends[i]]).strip())
    blank = np.flatnonzero(~is_row)
    return begins[is_row], ends[is_row], blank - np.arange(len(blank))
