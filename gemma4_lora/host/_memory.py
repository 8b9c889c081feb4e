"""Memory for large arrays on the host that is returned to the system."""

from collections.abc import Callable
import ctypes
import gc
import math
import mmap
from typing import Any

import numpy as np

# Smaller arrays are no pages of their own.
_SMALL_BYTES = 2**16
_PAGE_OFFSET = 16
# Size of a piece that is filled and then checked, while it is in a core's
# cache.
_PIECE_BYTES = 2**21


# Fills the memory of an array; makes an array that one fills.
Fill = Callable[[np.ndarray], None]
Filled = Callable[[tuple[int, ...], np.dtype, Fill], Any]
# Checks a filled piece.
Look = Callable[[np.ndarray], None]


def filled(shape: tuple[int, ...], dtype: np.dtype, fill: Fill) -> np.ndarray:
  """Returns an array of NumPy that a function fills; see `empty`."""
  array = empty(shape, dtype)
  fill(array)
  return array


def ignore(array: np.ndarray) -> None:
  """A `Look` that does nothing."""
  del array


def fill_in_pieces(read_into: Fill, look: Look, out: np.ndarray) -> None:
  """Fills an array, and checks each piece as soon as it is filled.

  A check at the end would stop the reading meanwhile.

  Args:
    read_into: Fills an array with the next data.
    look: Called with each piece, which has one axis.
    out: Contiguous.
  """
  flat = out.reshape(-1)
  step = max(1, _PIECE_BYTES // out.dtype.itemsize)
  for start in range(0, flat.size, step):
    piece = flat[start : start + step]
    read_into(piece)
    look(piece)


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """`np.empty` on pages that are returned to the system with the array.

  The C library keeps freed memory of up to 32 MB, in pieces between those that
  are in use: a tenth of a restored model. XLA on a CPU would use memory aligned
  to 64 bytes in place, and copy all of it in the first step that may overwrite
  its state: hence the offset within the page.
  """
  num_bytes = math.prod(shape) * dtype.itemsize
  if num_bytes < _SMALL_BYTES:
    return np.empty(shape, dtype)
  # Private: `mmap`'s default is memory shared with other processes, which takes
  # the system several times as long.
  pages = mmap.mmap(
      -1, num_bytes + _PAGE_OFFSET, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
  )
  data = np.frombuffer(pages, np.uint8, offset=_PAGE_OFFSET)
  advise_huge(data)
  return data.view(dtype).reshape(shape)


def blank(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """Returns zeros that take no memory, to find a function's result shape."""
  num_bytes = math.prod(shape) * dtype.itemsize
  if num_bytes < _SMALL_BYTES:
    return np.zeros(shape, dtype)
  flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
  pages = mmap.mmap(-1, num_bytes, flags=flags, prot=mmap.PROT_READ)
  return np.frombuffer(pages, dtype).reshape(shape)


def advise_huge(array: np.ndarray) -> None:
  """Asks for huge pages for memory that was not written yet, as NumPy does.

  Args:
    array: Contiguous.
  """
  if not hasattr(mmap, 'MADV_HUGEPAGE'):  # Only Linux has it.
    return
  start = -(-array.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
  size = array.ctypes.data + array.nbytes - start
  if size > 0:
    ctypes.CDLL(None).madvise(
        ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_HUGEPAGE
    )


def give_back() -> None:
  """Returns freed memory to the system.

  Orbax keeps read data in reference cycles, jax keeps transferred data until it
  is used, and glibc keeps freed memory in an arena for each thread.
  """
  gc.collect()
  trim()


def trim() -> None:
  """Returns freed memory that glibc keeps."""
  function = getattr(ctypes.CDLL(None), 'malloc_trim', None)
  if function is not None:
    function(0)
