"""Ends a command at Ctrl-C, whatever it is doing.

Python raises KeyboardInterrupt in whatever code is running. Inside an import it
may be lost: some libraries catch all errors of an import, and go on.
"""

from collections.abc import Iterator
import contextlib
import os
import signal
import sys
import threading
import types
from typing import Any

STATUS = 128 + signal.SIGINT
_IMPORTS = '<frozen importlib._bootstrap>'


@contextlib.contextmanager
def taken() -> Iterator[None]:
  """Handles SIGINT, unless another handler is installed."""
  is_main = threading.current_thread() is threading.main_thread()
  if not is_main or not _is_default(signal.getsignal(signal.SIGINT)):
    yield
    return
  signal.signal(signal.SIGINT, _Handler())
  try:
    yield
  finally:
    give_back()


def give_back() -> None:
  """Restores Python's own handler of SIGINT."""
  if isinstance(signal.getsignal(signal.SIGINT), _Handler):
    signal.signal(signal.SIGINT, signal.default_int_handler)


def end() -> None:
  """Says so, in one line."""
  print('gemma4_lora: stopped.', file=sys.stderr)


class _Handler:
  """Raises KeyboardInterrupt; ends the process within an import, or if asked twice."""

  def __init__(self):
    self._is_second = False

  def __call__(self, number: int, frame: types.FrameType | None) -> None:
    if self._is_second or _is_within_import(frame):
      end()
      sys.stdout.flush()
      sys.stderr.flush()
      os._exit(STATUS)
    self._is_second = True
    raise KeyboardInterrupt


def _is_within_import(frame: types.FrameType | None) -> bool:
  while frame is not None:
    if frame.f_code.co_filename == _IMPORTS:
      return True
    frame = frame.f_back
  return False


def _is_default(handler: Any) -> bool:
  return handler is signal.default_int_handler
