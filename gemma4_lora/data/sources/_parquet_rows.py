"""Rows of a Parquet file.

Parquet is read by groups of rows, so reading one row is slow. The file is
decoded once into a temporary Arrow file, which is mapped.
"""

import functools
import importlib
import os
from typing import Any

from etils import epath
from etils import epy
import numpy as np

from gemma4_lora import host
from gemma4_lora.data.layouts import _fields
from gemma4_lora.data.sources import _local_copies

with epy.lazy_imports():  # Most datasets do not need it.
  import pyarrow as pa
  from pyarrow import parquet

# Rows that are decoded at a time.
_BATCH_ROWS = 1024


class ParquetRows:
  """Rows of a Parquet file, as dicts.

  Args:
    path: The file, here or in a bucket.
    who: What asks, for messages.
  """

  def __init__(self, path: epath.Path, *, who: str):
    self._path = path
    self._copy = _local_copies.LocalCopy(
        functools.partial(_decode, path, who=who)
    )

  def __len__(self) -> int:
    return int(self._ends[-1]) if len(self._ends) else 0

  def __getitem__(self, index: int) -> Any:
    number = int(np.searchsorted(self._ends, index, side='right'))
    batch = self._batches[number]
    i = index - int(self._ends[number]) + batch.num_rows
    names = batch.schema.names
    try:
      return {
          name: _value(column[i])
          for name, column in zip(names, batch.columns, strict=True)
      }
    except UnicodeDecodeError as e:
      return _fields.Broken(
          f'The row has text that is not UTF-8: {self.place(index)} ({e})'
      )

  def place(self, index: int) -> str:
    """Returns the place of a row, for messages."""
    return f'row {index} of {os.fspath(self._path)}'

  def __getstate__(self) -> dict[str, Any]:
    # Worker processes map the file themselves.
    return {k: v for k, v in self.__dict__.items() if k != '_batches'}

  @functools.cached_property
  def _batches(self) -> list[Any]:
    file = pa.ipc.open_file(pa.memory_map(self._copy.path()))
    return [file.get_batch(i) for i in range(file.num_record_batches)]

  @functools.cached_property
  def _ends(self) -> np.ndarray:
    return np.cumsum([batch.num_rows for batch in self._batches], dtype=int)


def check_installed(path: epath.Path, *, who: str) -> None:
  """Raises ModuleNotFoundError with the package to install for Parquet."""
  try:
    importlib.import_module('pyarrow.parquet')
  except ImportError as e:
    raise ModuleNotFoundError(
        f'{who}: {os.fspath(path)} is a Parquet file, which is read with pyarrow:'
        " pip install 'gemma4_lora[parquet]'"
    ) from e


def _decode(path: epath.Path, target: str, *, who: str) -> None:
  """Writes a Parquet file as an Arrow file."""
  check_installed(path, who=who)
  copy = None
  if not host.is_local(path):
    copy = _local_copies.LocalCopy(
        functools.partial(_local_copies.fetch, path, who=who)
    )
  local = copy.path() if copy else os.fspath(path)
  try:
    with parquet.ParquetFile(
        local,
        page_checksum_verification=True,  # If the file has checksums.
    ) as file:
      schema = _without_dictionaries(file.schema_arrow)
      with pa.ipc.new_file(target, schema) as sink:
        # Across groups of rows, Arrow cannot read dictionaries in structs.
        for group in range(file.num_row_groups):
          for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group]):
            sink.write_batch(batch.cast(schema))
  except (pa.ArrowException, OSError, UnicodeDecodeError) as e:
    if isinstance(e, OSError) and e.errno is not None:
      raise  # An error of the disk; Arrow's errors have no number.
    line = ' '.join(str(e).split())
    raise ValueError(
        f'{who}: {os.fspath(path)} is no whole Parquet file ({line}). Download'
        ' or write it again.'
    ) from None


def _value(scalar: Any) -> Any:
  """Returns a value as Python has it; a time that Python has not as a number."""
  try:
    return scalar.as_py(maps_as_pydicts='lossy')
  except (OverflowError, ValueError):
    if isinstance(scalar, pa.TimestampScalar | pa.Date64Scalar):
      return scalar.value
    raise


def _without_dictionaries(schema: Any) -> Any:
  """Returns the schema of the values: a file has one dictionary per column."""
  return pa.schema(map(_plain_field, schema), metadata=schema.metadata)


def _plain_field(field: Any) -> Any:
  return field.with_type(_plain_type(field.type))


def _plain_type(kind: Any) -> Any:
  """Returns the type without dictionaries, at every depth."""
  types = pa.types
  if types.is_dictionary(kind):
    return _plain_type(kind.value_type)
  if types.is_struct(kind):
    return pa.struct(list(map(_plain_field, kind)))
  if types.is_map(kind):
    return pa.map_(_plain_type(kind.key_type), _plain_type(kind.item_type))
  if types.is_fixed_size_list(kind):
    return pa.list_(_plain_field(kind.value_field), kind.list_size)
  if types.is_large_list(kind):
    return pa.large_list(_plain_field(kind.value_field))
  if types.is_list(kind):
    return pa.list_(_plain_field(kind.value_field))
  return kind
