"""Asynchronous reads of pieces of a file in a bucket.

They come through tensorstore, which reads gs:// and s3://; other buckets by etils.
"""

from collections.abc import Callable
from concurrent import futures
import functools
import math
import os
from typing import Any
from typing import Protocol

from etils import epath
import tensorstore as ts

# How many files of buckets that etils reads are open at a time.
_NUM_READERS = 32
# How many requests, beyond which tensorstore lets them wait: its own choice is 32,
# and a checkpoint has hundreds of tensors that take no longer than an answer does.
_NUM_REQUESTS = 128
# For how long, in seconds, a read is tried again, or waits for a piece.
TIMEOUT, _TIMEOUT_S = 'GEMMA4_LORA_BUCKET_TIMEOUT', 60.0
_DELAY_S, _MAX_DELAY_S = 0.5, 16
_DRIVERS = {'gs': 'gcs', 's3': 's3'}

# From the first byte to the one after the last.
Span = tuple[int, int]


class Piece(Protocol):
  """A read in progress."""

  def result(self) -> bytes | memoryview:
    """Waits for them."""


# Starts to read a span.
Begin = Callable[[int, int], Piece]


def timeout_s() -> float:
  """Returns for how long a read is tried again, in seconds.

  Raises:
    ValueError: The environment has something else.
  """
  text = os.environ.get(TIMEOUT, '')
  try:
    seconds = float(text or _TIMEOUT_S)
  except ValueError:
    seconds = math.nan
  if not 0 < seconds < math.inf:
    raise ValueError(
        f'{TIMEOUT}={text!r}: give the seconds for which reads of a bucket are'
        f' tried again; {_TIMEOUT_S:g} if it is not set.'
    )
  return seconds


def kvstore(path: epath.Path) -> dict[str, Any] | None:
  """Returns tensorstore's form of a path; None if it cannot read it.

  Unasked, tensorstore would try again for a quarter of an hour.

  Args:
    path: A file; or a folder, of which it is the start of names in there.
  """
  scheme, _, rest = os.fspath(path).partition('://')
  if scheme not in _DRIVERS:
    return None
  driver = _DRIVERS[scheme]
  bucket, _, name = rest.partition('/')
  left, count, delay = timeout_s(), 0, _DELAY_S
  while left >= delay:
    left, count, delay = left - delay, count + 1, min(2 * delay, _MAX_DELAY_S)
  return {
      'driver': driver,
      'bucket': bucket,
      'path': name,
      f'{driver}_request_concurrency': {'limit': _NUM_REQUESTS},
      f'{driver}_request_retries': {
          'max_retries': max(count, 1),  # 0 is its own choice.
          'initial_delay': f'{_DELAY_S}s',
          'max_delay': f'{_MAX_DELAY_S}s',
      },
  }


def begin(path: epath.Path) -> Begin:
  """Returns what starts to read pieces of a file."""
  spec = kvstore(path)
  if spec is None:
    return functools.partial(_pool().submit, _read_by_etils, path)
  store = ts.KvStore.open(spec).result()
  return lambda start, stop: _Answer(
      path, store.read('', byte_range=slice(start, stop))
  )


def no_answer(path: epath.Path, seconds: float) -> TimeoutError:
  return TimeoutError(f'{path}: no answer for {seconds:g} s ({TIMEOUT})')


def truncated(path: epath.Path) -> ValueError:
  return ValueError(
      f'The checkpoint is truncated: {path} ends too early. Copy or download it'
      ' again.'
  )


class _Answer:
  """Bytes that tensorstore reads."""

  def __init__(self, path: epath.Path, future: ts.Future):
    self._path, self._future = path, future

  def result(self) -> bytes:
    seconds = timeout_s()
    try:
      answer = self._future.result(timeout=seconds)
    except TimeoutError as e:
      raise no_answer(self._path, seconds) from e
    except ValueError as e:
      if str(e).startswith('OUT_OF_RANGE'):
        raise truncated(self._path) from e
      raise  # The message of the server or the network.
    if answer.state == 'missing':
      raise FileNotFoundError(f'{self._path} is not there any more.')
    return answer.value


@functools.cache
def _pool() -> futures.ThreadPoolExecutor:
  return futures.ThreadPoolExecutor(
      _NUM_READERS, thread_name_prefix='g4-ranges'
  )


def _read_by_etils(path: epath.Path, start: int, stop: int) -> bytes:
  with path.open('rb') as file:
    file.seek(start)
    data = file.read(stop - start)
  if len(data) < stop - start:
    raise truncated(path)
  return data
