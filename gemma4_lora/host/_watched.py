"""Runs a process, and shows a line in place of a library's dump of a stack."""

from collections.abc import Callable
import ctypes
import os
import select
import signal
import sys

_PR_SET_PDEATHSIG = 1
_CHUNK = 1 << 16
_POLL_SECONDS = 0.2
_FORWARDED = (signal.SIGTERM, signal.SIGINT)


def watch(marker: bytes, explain: Callable[[str], str], *, status: int) -> None:
  """Returns in a child of this process, which shows what the child prints.

  This process does not return: it waits, hands signals on, and ends as the child
  does. If it is killed, so is the child.

  Args:
    marker: What a library prints to stderr before it aborts. That line and all
      that comes after it are not shown.
    explain: Called with these lines; returns the text to show instead.
    status: Exit status of this process if they came.
  """
  parent = os.getpid()
  read, write = os.pipe()
  sys.stdout.flush()
  sys.stderr.flush()
  # A signal that comes before there is a handler waits until there is one.
  mask = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
  child = os.fork()
  if not child:
    os.close(read)
    os.dup2(write, 2)
    os.close(write)
    # A terminal sends Ctrl-C to a whole group: the child would get it twice.
    os.setpgid(0, 0)
    _die_with(parent)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return
  os.close(write)
  for number in _FORWARDED:
    signal.signal(number, lambda n, _: _send(child, n))
  signal.pthread_sigmask(signal.SIG_SETMASK, mask)
  code, dump = _wait(child, read, marker)
  if dump:
    text = explain(dump.decode(errors='replace'))
    os.write(2, f'gemma4_lora: {text}\n'.encode())
    sys.exit(status)
  if os.WIFSIGNALED(code):
    number = os.WTERMSIG(code)
    if number != signal.SIGKILL:
      signal.signal(number, signal.SIG_DFL)
    os.kill(parent, number)
  sys.exit(os.waitstatus_to_exitcode(code))


def _wait(child: int, read: int, marker: bytes) -> tuple[int, bytes]:
  """Returns the child's status, and the lines that were not shown."""
  dump = b''
  code = None
  while True:
    ready, _, _ = select.select([read], [], [], _POLL_SECONDS)
    data = os.read(read, _CHUNK) if ready else b''
    if code is not None and not data:
      return code, dump
    if dump:
      dump += data
    elif data:
      before, found, after = data.partition(marker)
      if found:
        before, newline, line = before.rpartition(b'\n')
        dump = line + found + after
        data = before + newline
      _write(data)
    if code is None:
      pid, status = os.waitpid(child, os.WNOHANG)
      code = status if pid else None


def _write(data: bytes) -> None:
  while data:
    try:
      data = data[os.write(2, data) :]
    except OSError:  # The reader is gone.
      return


def _send(child: int, number: int) -> None:
  try:
    os.kill(child, number)
  except ProcessLookupError:
    pass


def _die_with(parent: int) -> None:
  """Ends this process when its parent ends, where the system can."""
  try:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
  except (OSError, AttributeError):
    return
  if os.getppid() != parent:  # It ended before.
    os._exit(1)
