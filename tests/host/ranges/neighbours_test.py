"""Small spans beside each other are one request, whoever wants which first."""

import numpy as np
import pytest

from gemma4_lora.host.ranges import _neighbours

_DATA = np.random.default_rng(0).bytes(1000)
_SMALL = [(10, 20), (20, 50), (50, 51)]
_SPANS = [(0, 10), *_SMALL, (51, 700), (700, 710), (710, 710), (720, 730)]


class _Piece:

  def __init__(self, data):
    self._data = data

  def result(self):
    if self._data is None:
      raise ConnectionError('gone')
    return self._data


def _begin(asked, data=_DATA):
  def begin(start, stop):
    asked.append((start, stop))
    return _Piece(None if data is None else data[start:stop])

  return begin


@pytest.fixture(autouse=True)
def _sizes(monkeypatch):
  monkeypatch.setattr(_neighbours, '_SMALL_BYTES', 100)
  monkeypatch.setattr(_neighbours, '_MOST_BYTES', 45)


def test_they_are_read_once():
  """Not with what is large, or not beside them, or would be too much at once."""
  asked = []
  neighbours = _neighbours.Neighbours(reversed(_SPANS))
  pieces = {x: neighbours.take(x, _begin(asked)) for x in reversed(_SPANS)}
  shared = {span for span, piece in pieces.items() if piece is not None}
  assert shared == {(0, 10), (10, 20)} | {(20, 50), (50, 51)}
  assert sorted(asked) == [(0, 20), (20, 51)]
  for start, stop in shared:
    assert pieces[start, stop].result() == _DATA[start:stop]


def test_a_second_time_it_is_read_alone():
  neighbours = _neighbours.Neighbours(_SMALL)
  asked = []
  assert neighbours.take((10, 20), _begin(asked)) is not None
  assert neighbours.take((10, 20), _begin(asked)) is None
  assert neighbours.take((11, 20), _begin(asked)) is None
  assert asked == [(10, 51)]


def test_all_have_the_error():
  neighbours = _neighbours.Neighbours(_SMALL)
  begin = _begin([], data=None)
  for piece in [neighbours.take(x, begin) for x in _SMALL]:
    with pytest.raises(ConnectionError, match='gone'):
      piece.result()
