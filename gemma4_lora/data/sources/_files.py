"""Files of rows as a source, beside Kauldron's own of JSON, TFDS and others."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import operator
from typing import Any
from typing import SupportsIndex

from etils import epath
from grain import python as grain
from kauldron import kd
from kauldron.data.py import transform_utils
import numpy as np

from gemma4_lora.data.sources import _compression
from gemma4_lora.data.sources import _globs
from gemma4_lora.data.sources import _jsonl_rows
from gemma4_lora.data.sources import _origins
from gemma4_lora.data.sources import _parquet_rows
from gemma4_lora.data.sources import _passed_transforms

_WHO = 'Files'


@dataclasses.dataclass(frozen=True)
class _FilesSource(grain.RandomAccessDataSource):
  """Rows of files, one file after the other."""

  path: epath.PathLike | Sequence[epath.PathLike]

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, index: SupportsIndex) -> Any:
    i = operator.index(index)
    if not 0 <= i < len(self):
      raise IndexError(f'{_WHO}: there is no row {i} of {len(self)}.')
    number = int(np.searchsorted(self._ends, i, side='right'))
    file = self._files[number]
    within = i - (int(self._ends[number - 1]) if number else 0)
    row = file[within]
    _origins.note(row, index=i, place=functools.partial(file.place, within))
    return row

  @functools.cached_property
  def _files(self) -> list[Any]:
    return [_opened(path) for path in _globs.expand(self.path, who=_WHO)]

  @functools.cached_property
  def _ends(self) -> np.ndarray:
    """How many rows there are up to the end of each file, i64 `[F]`."""
    return np.cumsum([len(file) for file in self._files], dtype=np.int64)


@dataclasses.dataclass(frozen=True)
class Files(kd.data.py.DataSourceBase):
  """`kd.data.py.Json` for files of one JSON object per line, and for Parquet.

  ```python
  train_ds=g4.data.Files(
      path=["chats.jsonl", "more-*.jsonl.gz", "gs://bucket/rows/*.parquet"],
      shuffle=True,
      batch_size=16,
      transforms=[...],
  )
  ```

  The format is read from a file's first bytes: lines, lines compressed by gzip
  or zstd, or Parquet. Files are mapped, not loaded into memory. Files that are
  compressed or in a bucket are first written to `$TMPDIR`, once for all worker
  processes, and deleted with the dataset. A killed process leaves its copies
  there.

  A line that is not a JSON object is a malformed row for the task, such as
  `ChatTask`; transforms before the task do not see it.

  Attributes:
    path: The file's path, here or in a bucket; a pattern, whose files are in the
      order of their names; or a list of those.
  """

  path: epath.PathLike | Sequence[epath.PathLike]

  def ds_with_transforms(self, rng: kd.random.PRNGKey) -> grain.MapDataset:
    transforms = self.transforms
    if isinstance(transforms, Mapping):
      transforms = transforms.values()
    return transform_utils.apply_transforms(
        self.ds_for_current_process(rng),
        _passed_transforms.before_task(transforms),
    )

  @functools.cached_property
  def data_source(  # pyrefly: ignore[bad-override]: as Kauldron's own.
      self,
  ) -> grain.RandomAccessDataSource:
    return _FilesSource(path=self.path)


# Its name in earlier configs, when it only read JSONL.
Jsonl = Files


def _opened(path: epath.Path) -> Any:
  """Returns the rows of a file, in the format of its first bytes."""
  kind = _compression.kind(path, who=_WHO)
  if kind == _compression.PARQUET:
    _parquet_rows.check_installed(path, who=_WHO)
    return _parquet_rows.ParquetRows(path, who=_WHO)
  return _jsonl_rows.JsonlRows(path, compression=kind, who=_WHO)
