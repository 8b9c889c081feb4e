"""Folders in a bucket that our readers see complete, or not at all.

Files are put together on this machine and uploaded when they are all there. Into
a new folder they go straight. To replace a folder, they go into one beside it,
`.NAME.<hex>.tmp`, so that the old one stays whole and readable until the upload is
done. Then one object, `COMMIT` in the old folder, says that the new files count;
readers follow it. Then they are copied over the old ones. A process that dies
before that object is written has changed nothing. One that dies after it has
replaced the folder: the next start copies the rest.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from concurrent import futures
import contextlib
import pathlib
import re
from typing import Any

from absl import logging
from etils import epath

from gemma4_lora.host import _storage_errors
from gemma4_lora.host.folders import _bucket_writers
from gemma4_lora.host.folders import _commit
from gemma4_lora.host.folders import _in_the_way
from gemma4_lora.host.folders import _owner
from gemma4_lora.host.folders import _upload

_TMP = re.compile(r'\.(?P<name>.+)\.[0-9a-f]{8}\.tmp')


def check_free(target: epath.Path, *, overwrite: bool, who: str, how: str):
  """See `_new_folder.check_free`."""
  if target.parent == target or str(target.parent).endswith('://'):
    raise ValueError(
        f'{who}: {target} is a whole bucket. Give a folder in it: {target}/name.'
    )
  with _storage_errors.explained(target, who=who, doing='write'):
    tidy(target, who=who)
    _in_the_way.check_no_file(target, who=who)
    if not _upload.is_there(target):
      _in_the_way.check_bucket(target, who=who)
      return
  if not overwrite:
    raise FileExistsError(
        f'{who}: {target} exists. Give another path, or {how} to replace the'
        ' folder.'
    )


def tidy(target: epath.Path, *, who: str) -> None:
  """Removes leftovers of dead writers, and completes their replacements.

  Args:
    target: A folder to write. Leftovers of other folders beside it are removed
      too.
    who: What asks, for messages.

  Raises:
    FileExistsError: Another process is writing the folder.
  """
  commit = _commit.read(target, who=who)
  if commit is not None and commit.state != 'complete':
    commit = _bucket_writers.wait(target, commit, who=who)
  if commit is not None and commit.state != 'complete':
    if commit.state == 'moving':
      logging.info('%s: %s: ends an interrupted replacement.', who, target)
      _replace(target, str(commit.source), _owner.make(), who=who)
    else:
      logging.info('%s: removes an interrupted write: %s.', who, target)
      _upload.remove(target)
  for folder in _upload.children(target.parent):
    match = _TMP.fullmatch(folder.name)
    if match is None:
      continue
    left = _commit.read(folder, who=who)
    if left is None or _owner.is_alive(
        left.writer, _bucket_writers.silent_s(folder)
    ):
      continue  # Without the file it is not ours: that goes last.
    owner = _commit.read(folder.with_name(match['name']), who=who)
    if owner is None or owner.source != folder.name:
      logging.info(
          '%s: removes what an interrupted write left: %s', who, folder
      )
      _upload.remove(folder)


@contextlib.contextmanager
def upload_to(
    target: epath.Path,
    stage: pathlib.Path,
    *,
    overwrite: bool,
    sealed: bool = True,
    who: str,
) -> Iterator[None]:
  """Uploads the files that the block has put into a local folder.

  Args:
    target: Where to, from `check_free`.
    stage: The folder of this machine.
    overwrite: Whether to replace the folder if there is one.
    sealed: Whether no file of it may change later, as those of a run's workdir
      do.
    who: What asks, for messages.
  """
  writer = _owner.make()
  place, is_committed = target, False
  with _storage_errors.explained(target, who=who, doing='write'):
    if _upload.is_there(target):
      if not overwrite:
        raise FileExistsError(f'{who}: {target} exists by now.')
      place = target.with_name(f'.{target.name}.{writer["token"]}.tmp')
  writing = _commit.Commit(state='writing', writer=writer)

  with _bucket_writers.Work(place, writing, who).started() as work:
    try:
      with _storage_errors.explained(target, who=who, doing='write'):
        # First, to see missing permissions before the work.
        work.write()
      yield
      with _storage_errors.explained(target, who=who, doing='write'):
        files = _upload.upload(stage, place)
        work.stop()
        done = _commit.Commit(state='complete', writer=writer, files=files)
        if not sealed and place == target:
          (place / _commit.COMMIT).unlink()
          return
        _commit.write(place, done)
        if place != target:
          now = _commit.read(target, who=who)
          if now is not None:
            _bucket_writers.wait(target, now, who=who)
          is_committed = True  # Perhaps so even if that raises.
          _replace(target, place.name, writer, who=who)
    except _bucket_writers.TakenError:
      raise  # The files belong to another process.
    except BaseException:
      work.end()
      if not is_committed:
        _discard(place)
      raise


def _replace(
    target: epath.Path, source: str, writer: Mapping[str, Any], *, who: str
) -> None:
  """Commits the files beside a folder, and copies them into it.

  After an interruption it can be called again.

  Args:
    target: The folder.
    source: Name of the folder with the new files.
    writer: The writer, from `_owner.make`.
    who: What asks, for messages.
  """
  moving = _commit.Commit(state='moving', writer=writer, source=source)
  place = target.with_name(source)
  new = _commit.read(place, who=who)
  if new is None or new.state != 'complete':
    raise ValueError(
        f'{who}: {_commit.interrupted(target, moving)} Its new files are not'
        f' whole, either: remove {target}.'
    )
  with _bucket_writers.Work(target, moving, who).started() as work:
    work.write()
    first, last = _upload.in_order(new.files)
    old = {*_upload.files_of(target)} - {_commit.COMMIT}

    def copy(name):
      work.check_heard()
      return name, _upload.copy(place / name, target / name)

    with futures.ThreadPoolExecutor(_commit.THREADS) as pool:

      def drop(names):
        list(pool.map(lambda n: (target / n).unlink(missing_ok=True), names))

      # Other readers find no index meanwhile, rather than a mix of files.
      drop(_upload.in_order(old)[1])
      moved = dict(pool.map(copy, first))
      drop(old - {*new.files})
    moved |= map(copy, last)
    if moved != new.files:
      raise ConnectionError(f'{place} was damaged on its way to {target}.')
    work.stop()
    _commit.write(target, new)
  _upload.remove(place)


def _discard(place: epath.Path) -> None:
  """Removes uploaded files; the next start removes the rest."""
  try:
    _upload.remove(place)
  except Exception as e:  # The first error matters.
    logging.warning('%s is left behind: %s', place, e)
