"""Memory that goes back to the system."""

import weakref

import numpy as np
import pytest

from gemma4_lora.host import _memory

_give_back = _memory.give_back  # Tests have another, from here on.


class _Cycle:
  """Holds itself, as what Orbax has read does."""

  def __init__(self):
    self.me = self


@pytest.mark.parametrize('shape', [(), (0, 3), (5,), (7, 300_000)])
def test_each_number_is_looked_at_once_it_is_there(shape):
  want = np.arange(np.prod(shape, dtype=int), dtype=np.int32)
  done, seen = [0], []

  def read_into(piece):
    assert len(seen) == done[0]  # No piece before the last one was looked at.
    piece[:] = want[done[0] : done[0] + piece.size]
    done[0] += piece.size

  out = np.full(shape, -1, np.int32)
  _memory.fill_in_pieces(read_into, seen.extend, out)
  np.testing.assert_array_equal(seen, want)
  np.testing.assert_array_equal(out.reshape(-1), want)


def test_cycles_of_references_are_given_back():
  cycle = weakref.ref(_Cycle())
  assert cycle()
  _give_back()
  assert cycle() is None
