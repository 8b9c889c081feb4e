"""Runs several tasks at once, and yields results in order."""

import collections
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from concurrent import futures
import contextvars
from typing import Any


def started(function: Callable[[], Any]) -> Callable[[], Any]:
  """Runs a function in a thread; returns a function that waits for its result.

  Args:
    function: Runs in a thread, in the caller's context.
  """
  pool = futures.ThreadPoolExecutor(1)
  future = pool.submit(contextvars.copy_context().run, function)
  pool.shutdown(wait=False)
  return future.result


def in_order(
    function: Callable[[Any], Any], items: Iterable[Any], *, limit: int
) -> Iterator[Any]:
  """Yields a function's results for the items, in their order.

  Args:
    function: Runs in threads, in the caller's context.
    items: Taken one by one; one waits in hand while others are in work.
    limit: How many items are in work, or done and not yielded yet, at most.
  """
  todo: collections.deque[futures.Future[Any]] = collections.deque()
  with futures.ThreadPoolExecutor(limit) as pool:
    for item in items:
      if len(todo) == limit:
        yield todo.popleft().result()
      context = contextvars.copy_context()
      todo.append(pool.submit(context.run, function, item))
      del item  # It may be large, and is the thread's now.
    while todo:
      yield todo.popleft().result()
