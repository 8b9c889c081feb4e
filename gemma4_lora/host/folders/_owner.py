"""Which process writes a folder: nobody may remove it while that process lives."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import os
import pathlib
import secrets
import socket
import threading
from typing import Any

# How often a writer shows that it lives, and how long it may be silent.
_BEAT_S = 30.0
_SILENT_S = 300.0

# What this process writes now. Other folders with its name are leftovers, as of
# a cell of a notebook that was interrupted.
_active: set[str] = set()


def make() -> dict[str, Any]:
  """Returns what tells this writer from all others, for a file."""
  return {
      'host': socket.gethostname(),
      'machine': _machine(),
      'pid': os.getpid(),
      'start': _start(os.getpid()),
      'token': secrets.token_hex(4),
  }


@contextlib.contextmanager
def at_work(
    writer: Mapping[str, Any], beat: Callable[[], None]
) -> Iterator[Callable[[], None]]:
  """Lets a writer count as alive until the end of the block.

  Args:
    writer: From `make`.
    beat: Called every 30 s from a thread: writes the writer's file anew, so that
      other machines see that it is alive.

  Yields:
    Stops the calls; a call that is under way ends first.
  """
  end = threading.Event()

  def work():
    while not end.wait(_BEAT_S):
      # A beat that fails is missed: who cannot write hears of it elsewhere.
      with contextlib.suppress(Exception):
        beat()

  thread = threading.Thread(target=work, daemon=True)

  def stop():
    end.set()
    thread.join()

  _active.add(writer['token'])
  thread.start()
  try:
    yield stop
  finally:
    stop()
    _active.discard(writer['token'])


def is_alive(writer: Mapping[str, Any], silent_s: float | None) -> bool:
  """Whether a writer may still be at work.

  Args:
    writer: What `make` returned there.
    silent_s: How long ago it wrote its file, by the clock of where that file is;
      None if that is not known. It matters only for other machines.
  """
  if writer.get('machine') != _machine():
    return silent_s is None or silent_s < _SILENT_S
  if (writer.get('pid'), writer.get('start')) == (
      os.getpid(),
      _start(os.getpid()),
  ):
    return writer.get('token') in _active
  start = _start(int(writer.get('pid', 0)))
  return start is not None and start == writer.get('start')


def describe(writer: Mapping[str, Any]) -> str:
  """Returns who it is, for messages."""
  return f'process {writer.get("pid")} on {writer.get("host")}'


def _machine() -> str:
  """Returns where a process number means one process: until the next boot."""
  try:
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    return f'{boot} {os.stat("/proc/self/ns/pid").st_ino}'
  except OSError:  # No Linux.
    return socket.gethostname()


def _start(pid: int) -> str | None:
  """Returns when a process started; None if there is none."""
  try:
    text = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except OSError:
    if os.path.exists('/proc/self/stat'):
      return None
    try:
      os.kill(pid, 0)
    except ProcessLookupError:
      return None
    except OSError:
      pass
    return '?'
  state, *rest = text.rpartition(')')[2].split()
  # A zombie writes nothing.
  return None if state == 'Z' else rest[18]
