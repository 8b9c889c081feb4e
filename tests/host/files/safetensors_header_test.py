"""Headers of safetensors: what the library refuses is refused, by name."""

import json
import math

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from gemma4_lora.host.files import _safetensors_header
from gemma4_lora.host.files import _tensors_in_memory

_TWO = {
    'a': {'dtype': 'F32', 'shape': [2, 3], 'data_offsets': [0, 24]},
    'b': {'dtype': 'BF16', 'shape': [4], 'data_offsets': [24, 32]},
}
_DATA = bytes(range(32))


def _file(header, data=_DATA):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  return len(text).to_bytes(8, 'little') + text + data


def _with(name, **fields):
  return {**_TWO, name: {**_TWO[name], **fields}}


def _read(data):
  return _tensors_in_memory.read(data, path='/there/x.safetensors', who='T')


def test_what_the_library_writes_is_read():
  tensors = {
      'a': np.arange(6, dtype=np.float32).reshape(2, 3),
      'one': np.array(3.0),
      'none': np.zeros((0, 4), np.int8),
      'half': np.ones(3, ml_dtypes.bfloat16),
  }
  data = safetensors.numpy.save(tensors, {'format': 'pt', 'note': 'é'})
  got, metadata = _read(data)
  assert metadata == {'format': 'pt', 'note': 'é'}
  assert got.keys() == tensors.keys()
  for name, x in tensors.items():
    assert got[name].dtype == x.dtype
    np.testing.assert_array_equal(got[name], x)


def test_a_file_is_mapped(tmp_path):
  file = tmp_path / 'x'
  file.write_bytes(_file(_TWO))
  got, _ = _tensors_in_memory.mapped(file)
  assert got['b'].view(np.uint8).tobytes() == _DATA[24:]
  file.write_bytes(b'')
  with pytest.raises(ValueError, match=f'{file} .*it is empty'):
    _tensors_in_memory.mapped(file)


_WRONG = [
    (_with('b', data_offsets=[0, 8]), 'a and b overlap|b and a overlap'),
    (_with('b', data_offsets=[20, 28]), 'a and b overlap.* starts at'),
    (_with('b', data_offsets=[25, 33]), 'truncated'),
    (_with('a', data_offsets=[0, 23]), 'a has 23 bytes by .* and 24 by its'),
    (_with('a', shape=[2, 4]), 'a has 24 bytes by .* and 32 by its shape'),
    (_with('a', shape=[6], dtype='F64'), 'a has 24 bytes .* and 48 by'),
    (_with('a', dtype='F16'), 'a has 24 bytes .* and 12 by'),
    (_with('a', dtype='U32'), 'a has dtype U32.*looks like MLX'),
    (_with('a', dtype=['F32']), 'a has dtype'),
    (_with('a', shape=[-2, -3]), 'a has shape .* non-negative'),
    (_with('a', shape=[2, True]), 'a has shape'),
    (_with('a', shape=[2.0, 3]), 'a has shape'),
    (_with('a', shape='23'), 'a has shape'),
    (_with('a', shape=[2**40, 2**40]), 'a has shape .* no memory'),
    (_with('a', shape=[2**62, 0, 2**62]), 'a has shape .* no memory'),
    (_with('a', shape=[1] * 40), 'a has shape'),
    (_with('a', data_offsets=[-8, 16]), 'a has data_offsets'),
    (_with('a', data_offsets=[24, 0]), 'a has data_offsets'),
    (_with('a', data_offsets=[0]), 'a has data_offsets'),
    (_with('a', data_offsets=None), 'a has data_offsets'),
    ({**_TWO, 'a': [1]}, 'a has dtype'),
    ({'a': _TWO['a']}, 'has .* bytes, and by its header'),
    ({'b': _TWO['b']}, 'the header and b have a hole'),
    ({**_TWO, '__metadata__': {'a': 1}}, '__metadata__ of the header'),
    (b'[1, 2]', 'not with an object'),
    (b' ' + json.dumps(_TWO).encode(), 'not with an object'),
    (b'{"a": 1, "a": 2}', 'the key a stands there twice'),
    (b'{"a":' + b'[' * 10**5, 'is damaged'),
    (b'{"a": ' + b'9' * 5000 + b'}', 'is damaged'),
    (b'{"\xff": 1}', 'is damaged'),
    (b'{"a\\u0000\\u001b": 1}', r"'a\\x00\\x1b' has dtype"),
]


@pytest.mark.parametrize(('header', 'match'), _WRONG)
def test_what_breaks_a_rule_is_an_error(header, match):
  with pytest.raises(ValueError, match=match) as e:
    _read(_file(header))
  assert '/there/x.safetensors' in str(e.value)
  str(e.value).encode()  # Can be printed.


@pytest.mark.parametrize('by', [-2, -1, 1, 2, 2**20, 2**40, 2**63])
def test_another_length_is_an_error(by):
  data = _file(_TWO)
  length = int.from_bytes(data[:8], 'little') + by
  with pytest.raises(ValueError, match='/there/x.safetensors'):
    _read((length % 2**64).to_bytes(8, 'little') + data[8:])


def test_a_larger_header_than_the_librarys_is_an_error():
  length = _safetensors_header.MAX_BYTES + 1
  asked = []

  def read_range(start, stop):
    asked.append(stop - start)
    return length.to_bytes(8, 'little') + b'{' * (stop - start - 8)

  with pytest.raises(ValueError, match=f'{length} bytes; 2 to'):
    _safetensors_header.read(read_range, 2**40, path='x')
  assert sum(asked) < 10**4  # Nothing of it was read.


@pytest.mark.parametrize(
    ('data', 'match'),
    [
        (b'version https://git-lfs.github.com/spec/v1\noid x', 'git lfs pull'),
        (b'\n<!DOCTYPE html><html>', 'web page.*Download it again'),
        (b'<HTML lang="en">' * 99, 'web page'),
        (b'', 'is empty .0 bytes'),
        (b'PK\x03\x04' + b'x' * 99, 'torch.save'),
        (b'\x03', 'has 1 bytes, and should have'),
        (b'Access to this model is restricted.', "begins with b'Access to th"),
        (b'{"error": "Not found"}', r'damaged, or no .* b.{"error"'),
    ],
)
def test_what_a_file_is_instead_is_said(data, match):
  with pytest.raises(ValueError, match=f'/there/x.safetensors.*{match}'):
    _read(data)


def test_what_the_library_refuses_is_refused():
  """Any bit of a small header: ours is never laxer."""
  data = _file(_TWO)
  header_end = len(data) - len(_DATA)
  refused = 0
  for bit in range(8 * header_end):
    bad = bytearray(data)
    bad[bit // 8] ^= 1 << bit % 8
    try:
      safetensors.deserialize(bytes(bad))
    except safetensors.SafetensorError:
      refused += 1
      with pytest.raises(ValueError, match='x.safetensors'):
        _read(bytes(bad))
  assert refused > 4 * header_end


def test_many_tensors_take_linear_time():
  """A header of 20000 tensors is checked in about a second, not in minutes."""
  n = 20_000
  header = {
      f't{i}': {'dtype': 'U8', 'shape': [1], 'data_offsets': [i, i + 1]}
      for i in reversed(range(n))
  }
  got, _ = _read(_file(header, bytes(n)))
  assert math.prod(x.size for x in got.values()) == 1 and len(got) == n
