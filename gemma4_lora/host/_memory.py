"""Memory for large arrays on the host that goes back to the system."""

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
# What is filled before it is looked at: a core's cache still has it.
_PIECE_BYTES = 2**21


# Fills the memory of an array; makes an array that one fills.
Fill = Callable[[np.ndarray], None]
Filled = Callable[[tuple[int, ...], np.dtype, Fill], Any]
# Looks at what was filled.
Look = Callable[[np.ndarray], None]


def filled(shape: tuple[int, ...], dtype: np.dtype, fill: Fill) -> np.ndarray:
  """Returns an array of NumPy that a function fills; see `empty`."""
  array = empty(shape, dtype)
  fill(array)
  return array


def ignore(array: np.ndarray) -> None:
  """Is a `Look` at nothing."""
  del array


def fill_in_pieces(read_into: Fill, look: Look, out: np.ndarray) -> None:
  """Fills an array, and looks at each piece as soon as it is there.

  Once all is there, nobody would read on while it is looked at.

  Args:
    read_into: Fills an array with what comes next.
    look: Is given each piece, of one axis.
    out: Contiguous.
  """
  flat = out.reshape(-1)
  step = max(1, _PIECE_BYTES // out.dtype.itemsize)
  for start in range(0, flat.size, step):
    piece = flat[start : start + step]
    read_into(piece)
    look(piece)


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """`np.empty`, of pages that go back to the system with the array.

  The C library keeps freed memory of up to 32 MB, in pieces between those that
  are in use: it came to a tenth of a restored model. What is aligned to 64 bytes
  XLA would use in place on a CPU, and copy all at once in the first step that
  may overwrite its state: hence the place within the page.
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
  """Returns zeros that take no memory, to see what a function makes of a shape."""
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
  """Gives memory back to the system, of which a leaf has just been freed.

  Orbax keeps what it read in cycles of references, jax what it put on a device
  until it is asked for, and glibc what was freed: an arena for each of many
  threads.
  """
  gc.collect()
  trim()


def trim() -> None:
  """Gives back what glibc keeps of freed memory, for as long as nobody wants it."""
  function = getattr(ctypes.CDLL(None), 'malloc_trim', None)
  if function is not None:
    function(0)
