"""What repeats in a sequence of layers."""

import pytest

from gemma4_lora.nn.blocks import _loops


def _unrolled(loops, kinds, first=0):
  """The kinds that loops run, each of a body's being its first pass's."""
  run = []
  for part in loops:
    if isinstance(part, _loops.Loop):
      run += _unrolled(part.body, kinds, first) * part.count
    else:
      run.append(kinds[first])
    first += part.size
  return run


def _bodies(loops):
  return sum(
      _bodies(part.body) if isinstance(part, _loops.Loop) else 1
      for part in loops
  )


@pytest.mark.parametrize(
    'kinds, bodies',
    [
        ('LLLLG' * 3 + 'SSSST' * 4, 4),  # E2B
        ('LLLLLG' * 4 + 'SSSSST' * 3, 4),  # E4B
        ('LLLLLG' * 10, 2),  # 31B
        ('LLLLL', 1),
        ('LG', 2),
        ('ABCD', 4),
        ('ABABC', 3),
        ('LLGLLGL', 3),
        ('', 0),
    ],
)
def test_runs_the_same_layers_of_fewer_bodies(kinds, bodies):
  loops = _loops.find(kinds)
  assert ''.join(_unrolled(loops, kinds)) == kinds
  assert _bodies(loops) == bodies
