"""Memory that goes back to the system."""

import weakref

from gemma4_lora.host import _memory

_give_back = _memory.give_back  # Tests have another, from here on.


class _Cycle:
  """Holds itself, as what Orbax has read does."""

  def __init__(self):
    self.me = self


def test_cycles_of_references_are_given_back():
  cycle = weakref.ref(_Cycle())
  assert cycle()
  _give_back()
  assert cycle() is None
