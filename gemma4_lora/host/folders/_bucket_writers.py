"""One process at a time, of any machine, writes a folder in a bucket.

No clock of a machine is compared with another's: a process of this machine is
looked up, and one of another lives if its file changes while we watch. The
bucket's own clock measures how long it has been silent.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import dataclasses
import time

from absl import logging
from etils import epath

from gemma4_lora.host.folders import _commit
from gemma4_lora.host.folders import _owner

_POLL_S = 2.0


class TakenError(FileExistsError):
  """Another process took the folder that this one writes."""


class Work:
  """A write of this process to a folder, until `stop` or `end`."""

  def __init__(self, place: epath.Path, commit: _commit.Commit, who: str):
    self._place, self._commit, self._who = place, commit, who
    self._taken: TakenError | None = None
    self._end: Callable[[], None] = lambda: None

  @contextlib.contextmanager
  def started(self) -> Iterator['Work']:
    """Shows that this process lives, until the end of the block."""
    with _owner.at_work(self._commit.writer, self._beat) as self._end:
      yield self

  def write(self) -> None:
    """Writes the file."""
    _commit.write(self._place, self._commit)

  def check_heard(self) -> None:
    """Raises if a beat has found another writer.

    Raises:
      TakenError: As this one seemed dead, or both started at once.
    """
    if self._taken is not None:
      raise self._taken

  def end(self) -> None:
    """Ends the beats."""
    self._end()

  def stop(self) -> None:
    """Ends the beats, and checks that the folder is still ours.

    Raises:
      TakenError: It is not.
    """
    self._end()
    self._look()
    self.check_heard()

  def _look(self) -> None:
    now = _commit.read(self._place, who=self._who)
    token = self._commit.writer['token']
    if now is not None and now.writer.get('token') != token:
      self._taken = TakenError(
          f'{self._who}: {self._place} is being written by'
          f' {_owner.describe(now.writer)}, too, which took it after this process.'
          ' Write it again when that one has ended.'
      )

  def _beat(self, count: int) -> None:
    self._look()
    if self._taken is None:
      writer = {**self._commit.writer, 'beat': count}
      _commit.write(
          self._place, dataclasses.replace(self._commit, writer=writer)
      )


def wait(
    folder: epath.Path, commit: _commit.Commit, *, who: str
) -> _commit.Commit | None:
  """Returns the content of a folder's file once no process writes it.

  Args:
    folder: The folder.
    commit: What the file says now.
    who: What asks, for messages.

  Raises:
    FileExistsError: A live process writes it.
  """
  if commit.state == 'complete' or not _owner.is_alive(
      commit.writer, silent_s(folder)
  ):
    return commit
  writer = _owner.describe(commit.writer)
  if not _owner.is_here(commit.writer):
    patience = _owner.PATIENCE_S
    logging.warning(
        '%s: %s is being written by %s: waiting up to %.0f s to see whether that'
        ' still lives.',
        *(who, folder, writer, patience),
    )
    end = time.monotonic() + patience
    while time.monotonic() < end:
      time.sleep(min(_POLL_S, patience / 10))
      now = _commit.read(folder, who=who)
      if now is None or now.state == 'complete':
        return now
      if now != commit:
        break
    else:
      return commit
  raise FileExistsError(
      f'{who}: {folder} is being written by {writer}. Wait for it, or give'
      ' another path.'
  )


def silent_s(folder: epath.Path) -> float | None:
  """Returns how long ago the file was written, by the clock of the bucket."""
  try:
    written = (folder / _commit.COMMIT).stat().mtime
    if not written:  # Some kinds of buckets do not say.
      return None
    probe = folder / f'{_commit.COMMIT}.now'
    probe.write_text(str(time.time()))
    now = probe.stat().mtime
    probe.unlink()
    return now - written
  except FileNotFoundError:
    return None
