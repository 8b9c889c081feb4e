"""One process of several writes to a bucket, which all hosts share.

On disks of their own, each host writes a folder of its own.
"""

from collections.abc import Iterator
import contextlib
import os
import sys
from typing import Any

from etils import epath


def is_writer() -> bool:
  """Whether this process is the one that writes."""
  distributed = _distributed()
  return distributed is None or distributed.process_index() == 0


@contextlib.contextmanager
def together(path: epath.PathLike, *, who: str) -> Iterator[None]:
  """Lets all processes end a block at once, and fail if the writer does.

  Args:
    path: What is written.
    who: What asks, for messages.

  Raises:
    OSError: In all others, where the writer has raised.
  """
  distributed = _distributed()
  if distributed is None:
    yield
    return
  is_well = False
  try:
    yield
    is_well = True
  finally:
    told = _tell_all(is_well)
    if is_well and not told:
      raise OSError(
          f'{who}: {os.fspath(path)} was not written: process 0 says why.'
      )


def _tell_all(is_well: bool) -> bool:
  """Returns whether all is well on all processes."""
  from jax.experimental import multihost_utils  # pylint: disable=g-import-not-at-top
  import numpy as np  # pylint: disable=g-import-not-at-top

  return bool(multihost_utils.process_allgather(np.array(is_well)).all())


def _distributed() -> Any:
  """Returns jax if there are several processes; it is not imported for that."""
  jax = sys.modules.get('jax')
  if jax is None or not jax.distributed.is_initialized():
    return None
  return jax if jax.process_count() > 1 else None
