"""SIGTERM and SIGINT: a run saves before it stops."""

import os
import signal
import sys
import threading
from typing import Any
from typing import NoReturn

from absl import logging

# From `sysexits.h`: a temporary failure. The run is saved, and the same command
# goes on.
STOPPED = 75
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(SystemExit):
  """A run ended at a signal; it is saved."""


class StopSignals:
  """Handles the signals, and remembers the first.

  While a run trains, it asks `received` at each step. Before that, a signal
  ends the process at once. A second SIGINT does so always: also while the main
  thread compiles, and runs no Python.

  In a notebook, whose process outlives a run, `KeyboardInterrupt` takes the
  place of both.
  """

  def __init__(self) -> None:
    self.received: str | None = None
    self.is_training = False
    self._interrupts = 0
    self._previous: dict[signal.Signals, Any] = {}
    self._pipe: tuple[int, int] | None = None
    self._forwards = False

  def begin(self) -> None:
    """Takes both signals while libraries are imported: see `install`.

    Python's own handler raises, also where that is lost: jax has a callback in
    the garbage collector.
    """
    if threading.current_thread() is threading.main_thread():
      for number in _SIGNALS:
        self._take(number)

  def install(self, *, several_hosts: bool) -> None:
    """Handles both signals, unless other code does.

    Args:
      several_hosts: Whether JAX takes SIGTERM, to tell the other hosts. SIGINT
        is then handed on as one.
    """
    if threading.current_thread() is not threading.main_thread():
      logging.info('A run in a thread is not stopped by signals.')
      return
    self._forwards = several_hosts
    for number in _SIGNALS:
      if number != signal.SIGTERM or not several_hosts:
        self._take(number)
    if not is_interactive():
      self._watch()

  def remove(self) -> None:
    """Restores the previous handlers."""
    if threading.current_thread() is not threading.main_thread():
      return
    for number, previous in self._previous.items():
      if signal.getsignal(number) == self._on_signal:
        signal.signal(number, previous)
    self._previous = {}
    if self._pipe is not None:
      signal.set_wakeup_fd(-1)
      os.close(self._pipe[1])  # Ends the thread, which closes the other end.
      self._pipe = None
    self.received = None
    self._interrupts = 0

  def check(self) -> None:
    """Ends the process after a signal, if no run can save.

    The handler does so at once. What it raises is lost if Python was about to
    call back from its garbage collection: whoever starts a run asks again.
    """
    if self.received and not self.is_training:
      # Before the first step, or a checkpointer that does not ask.
      stop(
          f'{self.received}: stopped. The same command goes on from the last'
          ' checkpoint, if there is one.',
          self.received,
      )

  def _take(self, number: signal.Signals) -> None:
    default: Any = signal.SIG_DFL
    if number == signal.SIGINT:
      default = signal.default_int_handler
    # Another handler is ours, or the user's, which is kept.
    if signal.getsignal(number) is default:
      self._previous[number] = signal.signal(number, self._on_signal)

  def _on_signal(self, number: int, frame: Any) -> None:
    del frame
    name = signal.Signals(number).name
    is_first = self.received is None
    self.received = self.received or name
    self.check()
    if number != signal.SIGINT:
      return
    self._interrupts += 1
    if self._interrupts > 1:
      if is_interactive():
        raise KeyboardInterrupt
      os._exit(128 + signal.SIGINT)
    if is_first:
      tell(
          'SIGINT: saves and stops after this step. Once more stops at once,'
          ' without saving.'
      )
      if self._forwards:
        os.kill(os.getpid(), signal.SIGTERM)

  def _watch(self) -> None:
    """Ends the process at the second SIGINT, whatever its main thread does."""
    if self._pipe is not None:
      return
    read, write = os.pipe()
    os.set_blocking(write, False)
    previous = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    if previous != -1:  # Handlers of an event loop.
      signal.set_wakeup_fd(previous)
      os.close(read)
      os.close(write)
      return
    self._pipe = (read, write)

    def count() -> None:
      interrupts = 0
      while data := os.read(read, 1):
        interrupts += data[0] == signal.SIGINT
        if interrupts > 1:
          os._exit(128 + signal.SIGINT)
      os.close(read)

    threading.Thread(target=count, name='second SIGINT', daemon=True).start()


_SIGNALS_OF_PROCESS = StopSignals()


def of_process() -> StopSignals:
  """Returns the shared instance: a process has one set of handlers."""
  return _SIGNALS_OF_PROCESS


def stop(text: str, name: str) -> NoReturn:
  """Prints the reason, and ends the run.

  Args:
    text: What to say.
    name: Name of the signal.

  Raises:
    Stopped: To end the process, with a status of its own.
    KeyboardInterrupt: In a notebook, which goes on.
  """
  tell(text)
  if is_interactive() and name == 'SIGINT':
    raise KeyboardInterrupt(text)
  if is_interactive():  # The machine ends, and the notebook with it.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
  raise Stopped(STOPPED)


def tell(text: str) -> None:
  """Writes a line to stderr, in a signal handler too."""
  line = f'gemma4_lora: {text}\n'
  try:
    # Its own line, if a progress bar stands there.
    sys.stderr.write(f'\n{line}' if sys.stderr.isatty() else line)
    sys.stderr.flush()
  except (RuntimeError, ValueError, OSError):  # It was writing, or is closed.
    os.write(2, line.encode())


def is_interactive() -> bool:
  """Whether the process goes on after a run, as in a notebook."""
  # Programs that run notebooks import `ipykernel`, too.
  ipython = sys.modules.get('IPython')
  in_ipython = ipython is not None and ipython.get_ipython() is not None
  return in_ipython or hasattr(sys, 'ps1')
