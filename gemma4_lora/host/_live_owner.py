"""The owner of a folder: a file that a live process keeps changing."""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import dataclasses
import fcntl
import json
import os
import secrets
import socket
import threading
import time

from absl import logging
from etils import epath

from gemma4_lora.host import _paths
from gemma4_lora.host import _processes

BEAT_SECONDS = 10.0
# How long another machine's file must stay the same before its process counts
# as dead: several beats, plus the delay of a slow storage.
PATIENCE_SECONDS = 45.0
# How long a process waits for others that found no owner at the same moment.
_SETTLE_SECONDS = 2.0
_TRIES, _PAUSE_SECONDS = 3, 0.5


class OwnedError(RuntimeError):
  """Another live process has the folder."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Owner:
  """The content of the file.

  Attributes:
    key: Random; tells processes apart.
    host: Name of the machine.
    machine: One boot of a machine, and one namespace of its process ids.
    pid: The process.
    born: When the process started, as the machine counts; '' if not known.
    started: When it took the folder, by its clock, for people.
    beat: A count that grows while the process lives.
  """

  key: str
  host: str
  machine: str
  pid: int
  born: str
  started: str
  beat: int = 0

  @property
  def text(self) -> str:
    return (
        f'process {self.pid} on {self.host or "another machine"}, started'
        f' {self.started}'
    )


class Ownership:
  """A folder that this process owns until it releases it.

  No clock is compared with another: a process of this machine is looked up, and
  one of another lives if its beat changes while we watch.

  Attributes:
    answered: When the storage last did what it was asked to, as
      `time.monotonic` counts.
  """

  def __init__(self, path: epath.Path, owner: Owner, beat_seconds: float):
    """Creates it: see `take`."""
    self.answered = time.monotonic()
    self._path = path
    self._owner = owner
    self._pid = os.getpid()
    self._lost: Owner | None = None
    self._ended = threading.Event()
    self._lock = threading.Lock()
    self._thread = threading.Thread(
        target=self._keep, args=(beat_seconds,), name='owner', daemon=True
    )
    self._thread.start()

  @classmethod
  def take(
      cls,
      path: epath.PathLike,
      *,
      patience_seconds: float = PATIENCE_SECONDS,
      beat_seconds: float = BEAT_SECONDS,
      on_wait: Callable[[str], None] = logging.warning,
  ) -> 'Ownership':
    """Takes a folder.

    Args:
      path: The file, in the folder or beside it; on a disk or in a bucket.
      patience_seconds: How long to watch the file of a process that cannot be
        looked up.
      beat_seconds: How often ours changes.
      on_wait: Called with the reason for the wait.

    Raises:
      OwnedError: A live process has it.
      OSError: The file cannot be written.
    """
    path = _paths.path(path)
    with _alone(path) as is_alone:
      old = _read_again(path)
      if old is not None and _is_alive(old, path, patience_seconds, on_wait):
        raise OwnedError(old.text)
      owner = _this_process()
      began = time.monotonic()
      _write(path, owner)
      if not is_alone:
        # Two may have found no owner: the last to write owns the folder. With
        # slow storage, the other one may still be writing.
        took = time.monotonic() - began
        time.sleep(max(_SETTLE_SECONDS, 3 * took))
        now = read(path)
        if now is not None and now.key != owner.key:
          raise OwnedError(now.text)
      _remove_half_written(path)
    return cls(path, owner, beat_seconds)

  def check(self) -> None:
    """Reads the file.

    Raises:
      OwnedError: Another process took the folder: both started at once, or this
        one was suspended for so long that it seemed dead.
    """
    now = read(self._path)
    if now is not None and now.key != self._owner.key:
      self._lost = now
    if self._lost is not None:
      raise OwnedError(self._lost.text)

  def release(self) -> None:
    """Releases the folder; a second call does nothing."""
    if self._pid != os.getpid():  # A fork of the process: it has none.
      return
    with self._lock:
      if self._ended.is_set():
        return
      self._ended.set()
      now = read(self._path)
      if now is not None and now.key == self._owner.key:
        try:
          self._path.unlink(missing_ok=True)
        except Exception:  # pylint: disable=broad-exception-caught
          # The next start finds a dead process.
          logging.info('Cannot remove %s', self._path, exc_info=True)

  def _keep(self, seconds: float) -> None:
    while not self._ended.wait(seconds):
      with self._lock:
        if self._ended.is_set():
          return
        now = read(self._path)
        if now is not None and now.key != self._owner.key:
          self._lost = now
          return
        self._owner = dataclasses.replace(
            self._owner, beat=self._owner.beat + 1
        )
        try:
          _write(self._path, self._owner)
          self.answered = time.monotonic()
        except Exception:  # pylint: disable=broad-exception-caught
          # A passing failure of the storage: the next beat tries again.
          logging.info('Cannot write %s', self._path, exc_info=True)


def read(path: epath.Path) -> Owner | None:
  """Returns the content of the file; None if it cannot be read."""
  try:
    values = json.loads(path.read_text())
    return Owner(**{x.name: values[x.name] for x in dataclasses.fields(Owner)})
  except Exception:  # pylint: disable=broad-exception-caught
    # Any error of a storage may mean that the file does not exist.
    return None


def _read_again(path: epath.Path) -> Owner | None:
  """Reads a file that is there, even if a storage fails once."""
  for _ in range(_TRIES):
    owner = read(path)
    try:
      if owner is not None or not path.exists():
        return owner
    except Exception:  # pylint: disable=broad-exception-caught
      logging.info('Cannot look at %s', path, exc_info=True)
    time.sleep(_PAUSE_SECONDS)
  return None  # It is damaged.


@contextlib.contextmanager
def _alone(path: epath.Path) -> Iterator[bool]:
  """Keeps other processes of this machine out; returns whether that works.

  It locks the folder, which leaves no file. Buckets and some network disks have
  no locks.
  """
  folder = None
  try:
    if _paths.is_local(path):
      folder = os.open(path.parent, os.O_RDONLY)
      fcntl.flock(folder, fcntl.LOCK_EX)
      is_alone = True
    else:
      is_alone = False
  except OSError:
    is_alone = False
  try:
    yield is_alone
  finally:
    if folder is not None:
      os.close(folder)


def _write(path: epath.Path, owner: Owner) -> None:
  text = json.dumps(dataclasses.asdict(owner), indent=2)
  if not _paths.is_local(path):  # An object appears whole.
    path.write_text(text)
    return
  new = path.with_name(f'.{path.name}.{owner.key}')
  new.write_text(text)
  os.replace(new, path)


def _remove_half_written(path: epath.Path) -> None:
  """Removes leftovers of a process that was killed in `_write`."""
  if _paths.is_local(path):
    for left in path.parent.glob(f'.{path.name}.*'):
      left.unlink(missing_ok=True)


def _is_alive(
    owner: Owner,
    path: epath.Path,
    patience_seconds: float,
    on_wait: Callable[[str], None],
) -> bool:
  if owner.machine == _processes.machine():
    is_other = owner.pid != os.getpid()
    return is_other and _processes.started(owner.pid) == owner.born
  on_wait(
      f'{path} is of {owner.text}: waiting up to {patience_seconds:.0f} s to see'
      ' whether that still lives.'
  )
  end = time.monotonic() + patience_seconds
  while time.monotonic() < end:
    time.sleep(min(1.0, patience_seconds / 20))
    now = read(path)
    if now is None:  # It ended.
      return False
    if now != owner:
      return True
  return False


def _this_process() -> Owner:
  return Owner(
      key=secrets.token_hex(8),
      host=socket.gethostname(),
      machine=_processes.machine(),
      pid=os.getpid(),
      born=_processes.started(os.getpid()) or '',
      started=time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime()),
  )
