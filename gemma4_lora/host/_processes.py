"""Identifies processes of this machine, also if a process id is reused."""

import os
import pathlib
import socket

_PROC = pathlib.Path('/proc')


def machine() -> str:
  """Returns the scope in which a process id is unique until the next boot."""
  try:
    boot = (_PROC / 'sys/kernel/random/boot_id').read_text().strip()
    return f'{boot} {os.readlink(_PROC / "self/ns/pid")}'
  except OSError:  # No Linux.
    return socket.gethostname()


def started(pid: int) -> str | None:
  """Returns when a process started.

  Returns:
    None if no such process runs; `?` if one runs and its start time is unknown.
  """
  try:
    text = (_PROC / str(pid) / 'stat').read_text()
  except OSError:
    if (_PROC / 'self/stat').exists():
      return None
    try:
      os.kill(pid, 0)
    except ProcessLookupError:
      return None
    except OSError:
      pass
    return '?'
  # The name, in parentheses, may have spaces in it.
  state, *rest = text.rpartition(')')[2].split()
  # A zombie does nothing.
  return None if state in 'ZX' else rest[18]
