"""Processes forked from one that has imported all that they need.

A process that imports TensorFlow, Kauldron and gemma takes 10 s of a processor for
it. Python has one fork server per process, which imports what its first caller
names: all tests must name the same.
"""

import multiprocessing
from multiprocessing import context

PRELOAD = ('tensorflow', 'tests.lib.killed', 'tests.lib.two_hosts')


def server(
    preload: tuple[str, ...] = PRELOAD,
) -> context.ForkServerContext:
  """Returns the fork server, to make processes of.

  Args:
    preload: Modules that it imports; of no effect once it runs. Not for tests.
  """
  made = multiprocessing.get_context('forkserver')
  made.set_forkserver_preload(list(preload))
  return made
