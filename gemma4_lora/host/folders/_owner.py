"""The writer of a folder: others must not remove the folder while it lives."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import os
import secrets
import socket
import threading
from typing import Any

from gemma4_lora.host import _processes

# How often a writer shows that it lives; how long one of another machine is
# watched for that where its folder is wanted, and after what silence what it left
# is removed unasked.
_BEAT_S = 10.0
PATIENCE_S = 45.0
_SILENT_S = 300.0
_MOST_PIDS = 2**31

# What this process writes now. Other folders with its name are leftovers, as of
# a cell of a notebook that was interrupted.
_active: set[str] = set()


def make() -> dict[str, Any]:
  """Returns an identity of this writer, for a file."""
  return {
      'host': socket.gethostname(),
      'machine': _processes.machine(),
      'pid': os.getpid(),
      'start': _processes.started(os.getpid()),
      'token': secrets.token_hex(4),
  }


@contextlib.contextmanager
def at_work(
    writer: Mapping[str, Any], beat: Callable[[int], None]
) -> Iterator[Callable[[], None]]:
  """Lets a writer count as alive until the end of the block.

  Args:
    writer: From `make`.
    beat: Called every 10 s from a thread, with a count: changes the writer's
      file, so that other machines see that it is alive.

  Yields:
    Stops the calls; a call that is under way ends first.
  """
  end = threading.Event()

  def work():
    count = 0
    while not end.wait(_BEAT_S):
      count += 1
      # A failed beat is skipped: a write that fails raises elsewhere.
      with contextlib.suppress(Exception):
        beat(count)

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
  if not is_here(writer):
    return silent_s is None or silent_s < _SILENT_S
  if (writer.get('pid'), writer.get('start')) == (
      os.getpid(),
      _processes.started(os.getpid()),
  ):
    return writer.get('token') in _active
  pid = writer.get('pid')
  if not isinstance(pid, int) or not 0 < pid < _MOST_PIDS:
    return False
  start = _processes.started(pid)
  return start is not None and start == writer.get('start')


def is_here(writer: Mapping[str, Any]) -> bool:
  """Whether the writer runs on this machine, where it can be looked up."""
  return writer.get('machine') == _processes.machine()


def describe(writer: Mapping[str, Any]) -> str:
  """Returns the writer's name, for messages."""
  return f'process {writer.get("pid")} on {writer.get("host")}'
