"""What all readers of a bucket have under way together is bounded."""

from etils import epath
import numpy as np
import pytest

from gemma4_lora.host.ranges import _read_ahead

_PATH = epath.Path('gs://bucket/file')
_DATA = np.random.default_rng(0).bytes(1000)
_PIECE = 10


class _Bucket:
  """Counts what was asked for and is not dropped yet."""

  def __init__(self):
    self.started = 0

  def begin(self, start, stop):
    self.started += stop - start
    return _Piece(_DATA[start:stop])


class _Piece:

  def __init__(self, data):
    self._data = data

  def result(self):
    return self._data


@pytest.fixture(autouse=True)
def _nothing_is_left(monkeypatch):
  monkeypatch.setattr(_read_ahead, 'PIECE_BYTES', _PIECE)
  monkeypatch.setattr(_read_ahead, '_under_way', _read_ahead._UnderWay())
  yield
  assert _read_ahead._under_way._bytes == 0


def _open(bucket, start, stop, *, ahead=35):
  spans = _read_ahead.cut(start, stop)
  return _read_ahead.Reader(_PATH, spans, bucket.begin, ahead=lambda: ahead)


def _read(reader, size):
  out = np.empty(size, np.uint8)
  reader.read_into(out)
  return out.tobytes()


def test_the_bound_is_of_all_readers():
  """Who needs a piece has it all the same, and no reader waits for another."""
  bucket = _Bucket()
  first = _open(bucket, 0, 500)
  assert bucket.started == 30
  second = _open(bucket, 500, 1000)
  assert bucket.started == 30
  assert _read(second, 100) == _DATA[500:600]
  assert bucket.started == 30 + 100
  assert _read_ahead._under_way._bytes == 30
  assert _read(first, 5) == _DATA[:5]
  assert _read_ahead._under_way._bytes == 30
  second.close()
  assert _read(first, 495) == _DATA[5:500]
  first.close()
  third = _open(bucket, 0, 1000, ahead=1000)
  assert _read_ahead._under_way._bytes == 32 * _PIECE
  del third


def test_who_had_no_room_starts_by_age_as_soon_as_there_is_some():
  """Not when its turn comes: small arrays would wait one after the other."""
  bucket = _Bucket()
  first, second, third = (
      _open(bucket, start, stop)
      for start, stop in ((0, 30), (30, 50), (50, 60))
  )
  assert bucket.started == 30
  assert _read(first, 9) == _DATA[:9]
  assert bucket.started == 30
  assert _read(first, 1) == _DATA[9:10]
  assert bucket.started == 40
  assert _read(first, 20) == _DATA[10:30]  # It has ended, and lives on.
  assert bucket.started == 60
  assert _read(third, 10) + _read(second, 20) == _DATA[50:60] + _DATA[30:50]
  assert _read_ahead._under_way._bytes == 0


def test_it_ends():
  reader = _open(_Bucket(), 985, 1000)
  assert reader.read(100) == _DATA[985:995]
  with pytest.raises(ValueError, match='gs://bucket/file ends too early'):
    _read(reader, 6)


def test_what_fails_is_given_back():
  class Fails(_Bucket):

    def begin(self, start, stop):
      super().begin(start, stop)
      return self if start else _Piece(_DATA[:stop])

    def result(self):
      raise ConnectionError('gone')

  reader = _open(Fails(), 0, 100)
  with pytest.raises(ConnectionError, match='gone'):
    _read(reader, 100)


@pytest.mark.parametrize(
    ('left', 'ahead'),
    [(0, 2**25), (2**29, 2**26), (2**30, 2**27), (2**36, 2**27)],
)
def test_the_bound_is_a_part_of_what_is_left(left, ahead):
  assert _read_ahead.ahead_bytes(left) == ahead
