"""Files as plain bytes on this machine: decompressed, fetched from buckets.

Several processes map the one copy that the first of them makes.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import contextlib
from multiprocessing import util
import os
import tempfile
from typing import Any

from etils import epath

from gemma4_lora.host import _storage_errors

_PIECE_BYTES = 1 << 20


class LocalCopy:
  """A temporary file, deleted with the object that made it.

  A copy of the object in another process reads the same file, and makes one of
  its own if it is gone.

  Args:
    make: Writes the file of a path. It is called on first use.
  """

  def __init__(self, make: Callable[[str], None]):
    self._make = make
    self._path: str | None = None

  def path(self) -> str:
    """Returns where the file is.

    Raises:
      OSError: There is no room for it.
    """
    if self._path is None or not os.path.exists(self._path):
      handle, path = tempfile.mkstemp(prefix='gemma4_lora-')
      os.close(handle)
      try:
        self._make(path)
      except BaseException:
        _remove(path, os.getpid())
        raise
      # Children of `multiprocessing` do not run what `weakref.finalize` leaves
      # for the exit.
      util.Finalize(self, _remove, (path, os.getpid()), exitpriority=0)
      self._path = path
    return self._path

  def __getstate__(self) -> dict[str, Any]:
    return {'_make': self._make, '_path': self._path}


def write_pieces(
    data: Iterable[bytes], path: str, *, source: epath.Path
) -> None:
  """Writes pieces of bytes to a temporary file.

  Args:
    data: The pieces.
    path: The file.
    source: Their source, for messages.

  Raises:
    OSError: The disk is full. The message says how to use another.
  """
  with open(path, 'wb') as file:
    for piece in data:
      try:
        file.write(piece)
        file.flush()
      except OSError as e:
        raise OSError(
            e.errno,
            f'{e.strerror}: no room for {os.fspath(source)} as plain bytes in'
            f' {tempfile.gettempdir()}. Set $TMPDIR to a folder with room',
        ) from e


def pieces(path: epath.Path, *, who: str) -> Iterator[bytes]:
  """Yields the content of a file, on a disk or in a bucket."""
  with _storage_errors.explained(path, who=who):
    with path.open('rb') as file:
      while piece := file.read(_PIECE_BYTES):
        yield piece


def fetch(path: epath.Path, target: str, *, who: str) -> None:
  """Copies a file from a bucket."""
  write_pieces(pieces(path, who=who), target, source=path)


def _remove(path: str, pid: int) -> None:
  # A forked process has the finalizers of its parent.
  if os.getpid() == pid:
    with contextlib.suppress(OSError):
      os.remove(path)
