"""Limits how long Orbax waits for a bucket that does not answer.

Orbax takes no bound on how often tensorstore tries again, which is 32 times: a
quarter of an hour without the network. So the waiting thread asks the bucket
from time to time. Remove this when `ocp.PyTreeCheckpointHandler` (0.12) takes a
context of tensorstore, with `gcs_request_retries`.
"""

from collections.abc import Callable
from concurrent import futures
import contextvars
import itertools
import threading
from typing import Any

from etils import epath

from gemma4_lora.ckpts.sources import _locate
from gemma4_lora.host import _paths
from gemma4_lora.host.ranges import _bucket_reads
from gemma4_lora.host.ranges import _ranges


def call(
    function: Callable[[], Any],
    *,
    directory: epath.Path,
    is_short: bool = False,
) -> Any:
  """Returns the result of a function.

  Args:
    function: Reads a checkpoint. In a bucket, it runs in a thread, which is
      abandoned if the bucket does not answer.
    directory: The folder of the arrays.
    is_short: Whether it reads so little that it must end soon.

  Raises:
    TimeoutError: It takes too long.
    Exception: What the function raises, or reading a file of the checkpoint.
  """
  if _paths.is_local(directory):
    return function()
  done: futures.Future[Any] = futures.Future()
  context = contextvars.copy_context()

  def run():
    try:
      done.set_result(context.run(function))
    except BaseException as e:
      done.set_exception(e)

  # Not in a pool, as Python waits for its threads at exit.
  threading.Thread(target=run, daemon=True, name='g4-orbax').start()
  seconds = _bucket_reads.timeout_s()
  for asked in itertools.count():
    try:
      return done.result(seconds)
    except futures.TimeoutError:
      if done.done():
        raise
    if is_short and asked:
      raise _bucket_reads.no_answer(directory, 2 * seconds)
    _ranges.open_stream(directory / _locate.METADATA, 0, 1).read(1)
