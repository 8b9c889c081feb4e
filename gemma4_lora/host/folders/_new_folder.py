"""Folders that appear under their name complete, or not at all.

On a local disk a folder is written beside its place, in `.NAME.<hex>.tmp`, and
renamed. A bucket has no rename: see `_bucket_folder`. The next process that
writes beside it removes leftovers of killed ones.
"""

from collections.abc import Iterator
import contextlib
import ctypes
import errno
import os
import pathlib
import tempfile
from typing import Any

from etils import epath

from gemma4_lora.host import _paths
from gemma4_lora.host import _storage_errors
from gemma4_lora.host.folders import _bucket_folder
from gemma4_lora.host.folders import _in_the_way
from gemma4_lora.host.folders import _leftovers
from gemma4_lora.host.folders import _one_writer


def check_free(
    path: epath.PathLike,
    *,
    overwrite: bool,
    who: str,
    how: str = 'overwrite=True',
    by_orbax: bool = False,
) -> epath.Path:
  """Returns where a folder may be made.

  Args:
    path: The folder's path, as a user gives it. A link is followed.
    overwrite: Whether there may be a folder already.
    who: The function that asks, for messages.
    how: The user's argument that allows it.
    by_orbax: Whether Orbax is to write there.

  Raises:
    FileExistsError: There is something, or another process is writing it, or a
      run would lose its checkpoints.
    ValueError: It is no path that can be written: see `_paths.path`; or none
      that Orbax could read again.
    OSError: The bucket cannot be read.
  """
  path = _paths.path(path, who=who)
  _in_the_way.check_length(path, who=who)
  if by_orbax:
    _paths.check_orbax_can_read(path, who=who)
  if not _paths.is_local(path):
    with _one_writer.together(path, who=who):
      if _one_writer.is_writer():
        _bucket_folder.check_free(path, overwrite=overwrite, who=who, how=how)
        with _storage_errors.explained(path, who=who, doing='write'):
          _in_the_way.check_no_run(path, who=who)
    return path
  # The name as the user gave it may be a link: it stays one.
  path = epath.Path(os.path.realpath(path))
  if by_orbax:
    _paths.check_orbax_can_write(path, who=who)
  _leftovers.remove(pathlib.Path(path))
  _in_the_way.check_no_file(path, who=who)
  if path.exists() and not overwrite:
    raise FileExistsError(
        f'{who}: {path} exists. Give another path, or {how} to replace the'
        ' folder.'
    )
  _in_the_way.check_no_run(path, who=who)
  return path


@contextlib.contextmanager
def new_folder(
    path: epath.Path, *, overwrite: bool, sealed: bool = True, who: str
) -> Iterator[pathlib.Path]:
  """Gives an empty folder of this machine; at the end it is at `path`.

  If anything fails before, nothing is left, and what was at `path` stays. A
  folder for a bucket is first made in the folder for temporary files, which
  must have room for it. Where several processes call this, all get a folder,
  and that of the first is uploaded.

  Args:
    path: From `check_free`.
    overwrite: Whether to replace the folder if there is one.
    sealed: Whether no file of it may change later, as those of a run's workdir
      do: then a bucket keeps their sizes and checksums.
    who: The function that asks, for messages.

  Raises:
    FileExistsError: There is something by now, and not `overwrite`.
    OSError: It cannot be written; says why.
  """
  if not _paths.is_local(path):
    options = {'overwrite': overwrite, 'sealed': sealed}
    with _in_bucket(path, who=who, **options) as stage:
      yield stage
    return
  place = pathlib.Path(path)
  place.parent.mkdir(parents=True, exist_ok=True)
  with _leftovers.workplace(place.parent, place.name) as new:
    yield new
    for file in (*(x for x in new.rglob('*')), new):
      _sync(file)
    if overwrite and place.exists():
      _exchange(new, place)
    else:
      os.rename(new, place)
    _sync(place.parent)


@contextlib.contextmanager
def _in_bucket(
    path: epath.Path, *, who: str, **options: Any
) -> Iterator[pathlib.Path]:
  """Gives a folder that is uploaded at the end."""
  parent = pathlib.Path(tempfile.gettempdir())
  _leftovers.remove(parent / _leftovers.STAGE)
  try:
    with (
        _one_writer.together(path, who=who),
        _leftovers.workplace(parent, _leftovers.STAGE) as stage,
        (
            _bucket_folder.upload_to(path, stage, who=who, **options)
            if _one_writer.is_writer()
            else contextlib.nullcontext()
        ),
    ):
      yield stage
  except OSError as e:
    if e.errno != errno.ENOSPC:
      raise
    raise OSError(
        errno.ENOSPC,
        f'{who}: {parent} is full. What goes to {path} is put together there'
        ' first: let TMPDIR name a folder of a larger disk',
    ) from e


def _exchange(new: pathlib.Path, old: pathlib.Path) -> None:
  """Swaps two folders: at once where the system can, which Linux does."""
  at_cwd, flag = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
  renameat2 = getattr(ctypes.CDLL(None, use_errno=True), 'renameat2', None)
  if renameat2 is not None and not renameat2(
      at_cwd, os.fsencode(new), at_cwd, os.fsencode(old), flag
  ):
    return
  aside = new.with_name(_leftovers.ASIDE)
  os.rename(old, aside)
  try:
    os.rename(new, old)
  except BaseException:
    os.rename(aside, old)
    raise


def _sync(path: pathlib.Path) -> None:
  """Waits until a file or folder is on disk."""
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)
