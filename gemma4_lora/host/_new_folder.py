"""Folders that appear under their name complete, or not at all."""

from collections.abc import Iterator
import contextlib
import ctypes
import os
import pathlib
import secrets
import shutil
import time


def check_free(
    path: os.PathLike[str] | str,
    *,
    overwrite: bool,
    who: str,
    how: str = 'overwrite=True',
) -> pathlib.Path:
  """Returns where a folder may be made.

  Args:
    path: The folder's path. A link is followed.
    overwrite: Whether there may be a folder already.
    who: The function that asks, for messages.
    how: How the user of it allows that.

  Raises:
    FileExistsError: There is something.
  """
  # The name as the user gave it may be a link: it stays one.
  path = pathlib.Path(os.path.realpath(path))
  if path.exists() and not path.is_dir():
    raise FileExistsError(f'{who}: {path} is a file. Give another path.')
  if path.exists() and not overwrite:
    raise FileExistsError(
        f'{who}: {path} exists. Give another path, or {how} to replace the'
        ' folder.'
    )
  return path


@contextlib.contextmanager
def new_folder(
    path: pathlib.Path, *, overwrite: bool
) -> Iterator[pathlib.Path]:
  """Gives an empty folder beside `path`, which takes that name at the end.

  If anything fails before, nothing is left, and what was at `path` stays.

  Args:
    path: From `check_free`.
    overwrite: Whether to replace the folder if there is one.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  new = path.with_name(f'.{path.name}.{secrets.token_hex(4)}.tmp')
  new.mkdir()
  try:
    yield new
    for file in (*(x for x in new.rglob('*')), new):
      _sync(file)
    if overwrite and path.exists():
      _exchange(new, path)
    else:
      os.rename(new, path)
    _sync(path.parent)
  finally:
    _remove(new)


def _remove(folder: pathlib.Path) -> None:
  """Removes a folder that threads may still write to, after an error."""
  for _ in range(20):
    shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():
      return
    time.sleep(0.1)


def _exchange(new: pathlib.Path, old: pathlib.Path) -> None:
  """Swaps two folders: at once where the system can, which Linux does."""
  at_cwd, flag = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
  renameat2 = getattr(ctypes.CDLL(None, use_errno=True), 'renameat2', None)
  if renameat2 is not None and not renameat2(
      at_cwd, os.fsencode(new), at_cwd, os.fsencode(old), flag
  ):
    return
  aside = new.with_name(f'{new.name}.old')
  os.rename(old, aside)
  try:
    os.rename(new, old)
  except BaseException:
    os.rename(aside, old)
    raise
  os.rename(aside, new)


def _sync(path: pathlib.Path) -> None:
  """Waits until a file or folder is on disk."""
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)
