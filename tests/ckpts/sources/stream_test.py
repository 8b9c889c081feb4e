"""Arrays read row by row: what tensorstore reads, whatever the chunks are."""

import gc
import pathlib
import sys

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore as ts

from gemma4_lora.ckpts.sources import _stream

# Large enough to have a place in a file: small values stand in the index.
_SHAPE = (60, 10, 40)


def _save(
    path,
    array,
    *,
    chunks=_SHAPE,
    use_ocdbt=True,
    compressor='zstd',
    inline_bytes=100,
):
  folder = {'driver': 'file', 'path': f'{path}/layer.w/'}
  if use_ocdbt:
    base = {'driver': 'file', 'path': f'{path}/'}
    config = {'max_inline_value_bytes': inline_bytes}
    folder = {
        'driver': 'ocdbt',
        'base': base,
        'path': 'layer.w/',
        'config': config,
    }
  spec = {
      'driver': 'zarr',
      'kvstore': folder,
      'metadata': {
          'chunks': chunks,
          'compressor': compressor and {'id': compressor, 'level': 1},
      },
  }
  store = ts.open(
      spec, create=True, shape=array.shape, dtype=array.dtype
  ).result()
  store.write(array).result()
  return epath.Path(path)


def _array(dtype):
  rng = np.random.default_rng(0)
  return rng.standard_normal(_SHAPE).astype(jnp.dtype(dtype))


@pytest.mark.parametrize('use_ocdbt', [True, False])
@pytest.mark.parametrize(
    ('dtype', 'chunks', 'compressor', 'kind'),
    [
        ('bfloat16', _SHAPE, 'zstd', 'Streamed'),
        ('float32', (7, 10, 40), 'zstd', 'Streamed'),  # The last is not full.
        ('float32', (7, 10, 40), None, 'Streamed'),
        ('bfloat16', (7, 3, 40), 'zstd', '_Small'),
    ],
)
def test_rows_are_those_of_the_array(
    tmp_path, monkeypatch, use_ocdbt, dtype, chunks, compressor, kind
):
  monkeypatch.setattr(
      _stream, '_SMALL_BYTES', 10_000 if kind == '_Small' else 0
  )
  monkeypatch.setattr(_stream, '_SKIP_BYTES', 500)
  want = _array(dtype)
  path = _save(
      tmp_path / 'x',
      want,
      chunks=chunks,
      use_ocdbt=use_ocdbt,
      compressor=compressor,
  )
  rows = _stream.open_rows(path, 'layer.w')
  assert type(rows).__name__ == kind
  # One after the other, skipping some, across chunks, back, and all.
  for start, stop in (
      (0, 2),
      (2, 3),
      (5, 45),
      (59, 60),
      (1, 4),
      (1, 2),
      (0, 60),
  ):
    got = rows.read(start, stop)
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want[start:stop])


def _is_mapped(address):
  for line in pathlib.Path('/proc/self/maps').read_text().splitlines():
    start, stop = (int(x, 16) for x in line.split()[0].split('-'))
    if start <= address < stop:
      return True
  return False


@pytest.mark.parametrize('compressor', ['zstd', None])
def test_what_stands_in_the_index_is_taken_from_there(tmp_path, compressor):
  array = np.arange(12, dtype=np.float32).reshape(4, 3)
  path = _save(
      tmp_path,
      array,
      chunks=(4, 3),
      compressor=compressor,
      inline_bytes=1024,  # Orbax's own choice.
  )
  found = _stream.list_whole(path)['layer.w']
  assert found.inline
  np.testing.assert_array_equal(found.begin()(), array)
  np.testing.assert_array_equal(found.read(1, 3), array[1:3])


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_memory_goes_back_to_the_system(tmp_path, monkeypatch):
  """With the array; and the one on the device does not live in it."""
  monkeypatch.setattr(_stream, '_SMALL_BYTES', 0)
  want = _array('float32')
  path = _save(tmp_path / 'x', want)
  got = _stream.open_rows(path, 'layer.w').read(0, _SHAPE[0])
  address = got.ctypes.data
  on_device = jax.device_put(got)
  assert on_device.unsafe_buffer_pointer() != address
  np.testing.assert_array_equal(on_device, want)
  assert _is_mapped(address)
  del got
  gc.collect()  # What XLA copied from, jax lets go of then.
  assert not _is_mapped(address)


@pytest.mark.parametrize(
    'settings', [{'chunks': (7, 3, 40)}, {'compressor': 'zlib'}]
)
def test_what_cannot_be_read_so(tmp_path, monkeypatch, settings):
  """Large chunks of parts of rows, and what is compressed otherwise."""
  monkeypatch.setattr(_stream, '_SMALL_BYTES', 0)
  path = _save(tmp_path / 'x', _array('float32'), **settings)
  assert _stream.open_rows(path, 'layer.w') is None
  assert _stream.open_rows(path, 'layer.v') is None


def test_a_damaged_chunk_is_an_error(tmp_path, monkeypatch):
  monkeypatch.setattr(_stream, '_SMALL_BYTES', 0)
  path = _save(tmp_path / 'x', _array('float32'), use_ocdbt=False)
  file = path / 'layer.w' / '0.0.0'
  data = file.read_bytes()
  for bad, message in (
      (data[:100], 'damaged: .*0.0.0, at byte 0: it ends too early'),
      (b'no zstd' + data[7:], 'damaged: .*zstd'),
  ):
    file.write_bytes(bad)
    with pytest.raises(ValueError, match=message):
      _stream.open_rows(path, 'layer.w').read(0, 60)
