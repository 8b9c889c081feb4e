"""Checks the place of a new folder: is there no bucket, a file, or a run?"""

from collections.abc import Iterator
from concurrent import futures
import os
import re

from etils import epath

from gemma4_lora.host import _live_owner
from gemma4_lora.host import _paths
from gemma4_lora.host import _storage_errors
from gemma4_lora.host.folders import _upload

# https://docs.cloud.google.com/storage/docs/objects#naming, less what the names
# of files in a folder need. S3 and Azure have the same.
_MOST_BYTES = 1024
_OF_FILES = 200
# Where a run's checkpoints are, and what says which process trains.
_CHECKPOINTS = 'checkpoints'
OWNER = 'train_owner.json'
_THREADS = 8
_STEP = re.compile(r'ckpt_\d+')


def check_bucket(target: epath.Path, *, who: str) -> None:
  """Checks that the bucket exists, if the account may ask.

  Args:
    target: A path in it.
    who: What asks, for messages.

  Raises:
    FileNotFoundError: There is none.
    ConnectionError: The storage cannot be reached.
  """
  top = target
  while not _is_top(top):
    top = top.parent
  try:
    there = top.exists()
  except Exception as e:  # The account may not ask: the write will tell.
    _check_connected(e, top, who=who)
    return
  if not there:
    raise _storage_errors.ExplainedNotFoundError(
        f'{who}: {target}: there is no bucket {top}. Check its name, or make it.'
    )


def check_no_file(target: epath.Path, *, who: str) -> None:
  """Checks that a path and all above it are folders, or not there.

  A bucket may have an object `a` and one `a/b`; few programs can show both.

  Args:
    target: The path.
    who: What asks, for messages.

  Raises:
    FileExistsError: One is a file.
    ConnectionError: The storage cannot be reached.
  """
  for path in (target, *_above(target)):
    try:
      if not path.exists():
        continue
      is_file = not path.is_dir()
    except Exception as e:  # The account may not ask: the write will tell.
      _check_connected(e, path, who=who)
      return
    if not is_file:
      return
    what = f'{target}: {path}' if path != target else f'{target}'
    raise FileExistsError(f'{who}: {what} is a file. Give another path.')


def check_length(target: epath.Path, *, who: str) -> None:
  """Checks that the names of files in a folder of a bucket are not too long.

  Args:
    target: The folder.
    who: What asks, for messages.

  Raises:
    ValueError: They are.
  """
  if _paths.is_local(target):
    return
  name = os.fspath(target).partition('://')[2].partition('/')[2]
  most = _MOST_BYTES - _OF_FILES
  if (size := len(name.encode())) > most:
    raise ValueError(
        f'{who}: {target}: its name has {size} bytes below the bucket, and'
        f' objects have at most {_MOST_BYTES}: {most} for a folder, the rest for'
        ' its files. Give a shorter path.'
    )


def check_no_run(target: epath.Path, *, who: str) -> None:
  """Checks that no run would lose its checkpoints to a new folder.

  Args:
    target: The folder to make, or to replace with all that is in it.
    who: What asks, for messages.

  Raises:
    FileExistsError: It is the workdir of a run, has some, or is among a run's
      checkpoints.
  """
  for path in (target, *_above(target)):
    if path.name == _CHECKPOINTS and (
        (path.parent / OWNER).exists() or _has_steps(path)
    ):
      raise FileExistsError(
          f'{who}: {target} is among the checkpoints of the run in'
          f' {path.parent}{_live(path.parent)}. Give another path.'
      )
  paths = [target, *_upload.children(target)]
  with futures.ThreadPoolExecutor(_THREADS) as pool:
    are_runs = pool.map(_is_run, paths)
  for path, is_run in zip(paths, are_runs, strict=True):
    if is_run:
      raise FileExistsError(
          f'{who}: {target} would be replaced as a whole, and {path} is the'
          f' workdir of a run{_live(path)}, with its checkpoints. Give another'
          ' path.'
      )


def _check_connected(e: Exception, path: epath.Path, *, who: str) -> None:
  """Raises if there is no network: to ask again takes minutes each time."""
  found = _storage_errors.explain(e, path, who=who)
  if isinstance(found, _storage_errors.ExplainedConnectionError):
    raise found from e


def _is_run(folder: epath.Path) -> bool:
  return _has_steps(folder / _CHECKPOINTS) or (folder / OWNER).exists()


def _has_steps(folder: epath.Path) -> bool:
  return any(_STEP.fullmatch(x.name) for x in _upload.children(folder))


def _live(workdir: epath.Path) -> str:
  """Returns the process that trains there, if known."""
  owner = _live_owner.read(workdir / OWNER)
  return '' if owner is None else f', in which {owner.text} trains'


def _above(path: epath.Path) -> Iterator[epath.Path]:
  """Yields the folders that a path is in, within its bucket."""
  while not _is_top(path):
    path = path.parent
    yield path


def _is_top(path: epath.Path) -> bool:
  return path.parent == path or str(path.parent).endswith('://')
