"""Ranges of files here, and of buckets that tensorstore does not read.

Those that it reads: `tests/ckpts/sources/hugging_face_test.py`.
"""

from etils import epath
import fsspec
from fsspec.implementations import memory
import numpy as np
import pytest

from gemma4_lora import host
from gemma4_lora.host.ranges import _ranges
from gemma4_lora.host.ranges import _read_ahead

_DATA = np.random.default_rng(0).bytes(10_000)


@pytest.fixture(name='in_memory')
def _in_memory():
  """`hf://` is memory."""
  before = fsspec.get_filesystem_class('hf')
  fsspec.register_implementation('hf', memory.MemoryFileSystem, clobber=True)
  yield
  fsspec.register_implementation('hf', before, clobber=True)


def test_a_bucket_that_etils_reads(in_memory, monkeypatch):
  del in_memory
  monkeypatch.setattr(_ranges, '_HEAD_BYTES', 100)
  monkeypatch.setattr(_read_ahead, 'PIECE_BYTES', 700)
  path = host.path('hf://org/file')
  path.write_bytes(_DATA)
  file = _ranges.open_file(path)
  assert (file.size, file.is_local) == (len(_DATA), False)
  for start, stop in ((0, 10_000), (0, 8), (90, 110), (101, 9000), (5, 5)):
    assert _ranges.read(file, start, stop) == _DATA[start:stop]
  reader = file.open_at(50, 10_000)
  for first, size in ((50, 10), (60, 2000), (2060, 3)):
    out = np.empty(size, np.uint8)
    reader.read_into(out)
    assert out.tobytes() == _DATA[first : first + size]
  with pytest.raises(ValueError, match='truncated: hf://org/file ends too ear'):
    reader.read_into(np.empty(10_000, np.uint8))
  path.write_bytes(_DATA[:5000])
  with pytest.raises(ValueError, match='truncated: hf://org/file ends too ear'):
    _ranges.read(file, 4000, 6000)


def test_a_file_on_this_machine(tmp_path, monkeypatch):
  monkeypatch.setattr(_ranges, '_LOCAL_BYTES', 99)
  path = epath.Path(tmp_path / 'file')
  path.write_bytes(_DATA)
  file = _ranges.open_file(path)
  assert (file.size, file.is_local) == (len(_DATA), True)
  assert _ranges.read(file, 101, 9000) == _DATA[101:9000]
  with pytest.raises(ValueError, match='truncated: .*/file ends too early'):
    _ranges.read(file, 9000, 10_001)
