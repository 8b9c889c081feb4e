"""Files from this machine into a bucket, and within one."""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from concurrent import futures
import os
import pathlib
import re
from typing import Any
import zlib

from etils import epath

from gemma4_lora.host import _storage_errors
from gemma4_lora.host.folders import _commit

_PIECE_BYTES = 2**24
# Orbax's own mark of complete checkpoints, which it reads only in gs://.
_ORBAX_MARK = 'commit_success.txt'
_ORBAX = ('_METADATA', '_CHECKPOINT_METADATA')
# Files that others look for first, so they are uploaded last.
_LAST = re.compile(
    rf'(?:.*/)?(?:.*\.json|manifest\.ocdbt|{"|".join(_ORBAX)}|{_ORBAX_MARK})'
)


def upload(stage: pathlib.Path, place: epath.Path) -> dict[str, Any]:
  """Uploads all files of a folder; returns their sizes and checksums."""
  _mark_orbax(stage)
  names = sorted(
      x.relative_to(stage).as_posix() for x in stage.rglob('*') if x.is_file()
  )
  first, last = in_order(names)

  def one(name):
    return name, copy(stage / name, place / name)

  files = {}
  with futures.ThreadPoolExecutor(_commit.THREADS) as pool:
    files.update(pool.map(one, first))
  files.update(map(one, last))
  _check(place, files)
  return files


def copy(
    source: pathlib.Path | epath.Path, target: epath.Path
) -> tuple[int, int]:
  """Copies a file; returns its size and CRC-32."""
  try:
    return _copied(source, target)
  except BaseException as e:
    _storage_errors.forget_files(e)
    raise


def remove(folder: epath.Path) -> None:
  """Removes a folder: last the file by which the next start would find it."""
  names = [n for n in files_of(folder) if n != _commit.COMMIT]
  with futures.ThreadPoolExecutor(_commit.THREADS) as pool:
    list(pool.map(lambda n: (folder / n).unlink(missing_ok=True), names))
  folder.rmtree(missing_ok=True)


def files_of(folder: epath.Path, below: str = '') -> Iterator[str]:
  """Yields the names of all files in a folder, by their paths in it."""
  for child in children(folder / below):
    name = os.path.join(below, child.name)
    if (folder / name).is_dir():
      yield from files_of(folder, name)
    else:
      yield name


def children(folder: epath.Path) -> list[epath.Path]:
  """Returns the content of a folder, which need not exist.

  TensorFlow says for 5 s that a folder exists which this process has removed; its
  list is new.
  """
  return [*folder.iterdir()] if folder.exists() else []


def is_there(target: epath.Path) -> bool:
  """Whether there is a file or a folder."""
  return target.exists() and (not target.is_dir() or bool(children(target)))


def in_order(names: Iterable[str]) -> tuple[list[str], list[str]]:
  """Returns the names of data, and of what says where data is."""
  names = sorted(names)
  last = [n for n in names if _LAST.fullmatch(n)]
  # Orbax's mark after all others.
  last.sort(key=lambda n: n.endswith(_ORBAX_MARK))
  return [n for n in names if n not in last], last


def _copied(
    source: pathlib.Path | epath.Path, target: epath.Path
) -> tuple[int, int]:
  size = crc = 0
  with source.open('rb') as read, target.open('wb') as write:
    while piece := read.read(_PIECE_BYTES):
      write.write(piece)
      size, crc = size + len(piece), zlib.crc32(piece, crc)
    if not size:  # TensorFlow makes no object of which nothing was written.
      write.write(b'')
  return size, crc


def _check(place: epath.Path, files: Mapping[str, tuple[int, int]]) -> None:
  """Checks that the bucket has all sent bytes."""
  with futures.ThreadPoolExecutor(_commit.THREADS) as pool:
    sizes = list(pool.map(lambda name: _commit.size_of(place / name), files))
  for (name, (wanted, _)), size in zip(files.items(), sizes, strict=True):
    if size != wanted:
      raise ConnectionError(
          f'{place / name} has {size} bytes after {wanted} were sent. Try again.'
      )


def _mark_orbax(stage: pathlib.Path) -> None:
  """Marks Orbax's checkpoints in a folder as complete."""
  for folder in {x.parent for name in _ORBAX for x in stage.rglob(name)}:
    (folder / _ORBAX_MARK).write_text('Written and uploaded whole.')
