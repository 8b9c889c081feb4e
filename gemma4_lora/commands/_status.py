"""Reports what a slow command is doing: one line in a terminal, lines in a log."""

import sys
from typing import Self
from typing import TextIO

_CLEAR = '\r\x1b[K'


class Status:
  """Reports on stderr what a command is doing.

  ```python
  with _status.Status('gemma4_lora check') as status:
    status.say('reads the base')
  ```

  In a terminal, each line takes the place of the one before, and none is left at
  the end.
  """

  def __init__(self, who: str, stream: TextIO | None = None):
    self._who = who
    self._stream = stream or sys.stderr
    self._is_terminal = self._stream.isatty()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_) -> None:
    self.clear()

  def clear(self) -> None:
    """Clears the line, before something else is printed."""
    if self._is_terminal:
      self._write(_CLEAR)

  def say(self, text: str) -> None:
    """Reports the current step."""
    line = f'{self._who}: {text} …'
    self._write(f'{_CLEAR}{line}' if self._is_terminal else f'{line}\n')

  def _write(self, text: str) -> None:
    self._stream.write(text)
    self._stream.flush()
