"""Arrays of a checkpoint that are read before the restore asks for them.

The largest array of E2B's checkpoint is half of it and takes one core as long to
decompress as Python takes to trace the model's shapes, which say what will be
restored. Both are done at the same time.
"""

from collections.abc import Callable
from collections.abc import Iterator
from concurrent import futures
import contextlib
import contextvars
from typing import Any

from etils import epath

from gemma4_lora import _trees

THREAD = 'g4-read-ahead'

_Started = dict[tuple[str, _trees.Path], futures.Future[Any]]

_started: contextvars.ContextVar[_Started | None] = contextvars.ContextVar(
    'started', default=None
)


@contextlib.contextmanager
def reading(
    path: epath.Path, key: _trees.Path, reader: Callable[[], Any]
) -> Iterator[None]:
  """Reads an array in the background, for the first caller that takes it.

  Args:
    path: The checkpoint's path.
    key: Path of the array in there.
    reader: Reads it. Its errors are raised for the caller that takes the array.
  """
  pool = futures.ThreadPoolExecutor(1, thread_name_prefix=THREAD)
  token = _started.set({(str(path), key): pool.submit(reader)})
  try:
    yield
  finally:
    _started.reset(token)
    pool.shutdown(wait=False)  # Who sees an error need not wait for the file.


def take(path: epath.Path, key: _trees.Path) -> futures.Future[Any] | None:
  """Returns the array that is being read, if it is this one."""
  started = _started.get()
  return started.pop((str(path), key), None) if started else None
