"""Arrays of Orbax, decoded straight into their memory, and left to Orbax."""

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from gemma4_lora.ckpts import _sources
from gemma4_lora.ckpts import _trees
from gemma4_lora.ckpts import _zstd

_E2B = 'Gemma4_E2B'


def test_every_array_of_a_released_checkpoint_is(checkpoint):
  path, params = checkpoint(_E2B)
  arrays = _zstd.list_arrays(path)
  source = _sources.open_source(path, who='T')
  names = {m.name: k for k, m in _trees.flatten(source.tree).items()}
  assert arrays.keys() == names.keys()
  flat = _trees.flatten(params)
  for name, array in arrays.items():
    key = names[name]
    leaf = flat[key] if key in flat else flat[key[:-1]]  # `…linear.w`
    got = array.read()
    assert (got.shape, got.dtype) == (leaf.shape, leaf.dtype)
    assert got.tobytes() == leaf.tobytes()


def test_arrays_in_several_chunks_are_left_to_orbax(tmp_path):
  tree = {'one': np.arange(64.0), 'many': np.arange(64.0)}
  args = {'one': ocp.SaveArgs(), 'many': ocp.SaveArgs(chunk_byte_size=64)}
  handler = ocp.PyTreeCheckpointHandler()
  with ocp.Checkpointer(handler) as checkpointer:
    checkpointer.save(tmp_path / 'c', ocp.args.PyTreeSave(tree, save_args=args))
  assert set(_zstd.list_arrays(tmp_path / 'c')) == {'one'}
  source = _sources.open_source(tmp_path / 'c', who='T')
  got = source.read({(k,): ocp.RestoreArgs(np.ndarray) for k in tree})
  for name, want in tree.items():
    np.testing.assert_array_equal(got[name,], want)


def test_damaged_data(checkpoint, tmp_path):
  """Bytes of the file that are not what was written."""
  path, _ = checkpoint(_E2B)
  arrays = _zstd.list_arrays(path)
  large = max(
      (x for x in arrays.values() if not isinstance(x.frame, bytes)),
      key=lambda x: np.prod(x.shape),
  )
  data = bytearray(large.frame.read_bytes())
  data[large.offset : large.offset + 4] = b'\0\0\0\0'
  file = tmp_path / 'damaged'
  file.write_bytes(data)
  damaged = _zstd.Array(
      name=large.name,
      shape=large.shape,
      dtype=large.dtype,
      frame=file,
      offset=large.offset,
  )
  with pytest.raises(ValueError, match=rf'damaged at {large.name}.*Copy or'):
    damaged.read()
  file.write_bytes(
      file.read_bytes()[: large.offset]
      + large.frame.read_bytes()[large.offset : large.offset + 200]
  )
  with pytest.raises(ValueError, match=r'\d+ bytes, and should have \d+'):
    damaged.read()


def test_nothing_on_another_machine():
  assert _zstd.list_arrays('gs://bucket/checkpoint') == {}


def test_restores_all_devices_alike(checkpoint):
  """One read per array, whatever the shards."""
  path, params = checkpoint(_E2B)
  source = _sources.open_source(path, who='T')
  assert jax.device_count() == 8
  key = ('embedder', 'input_embedding')
  got = source.read({key: ocp.RestoreArgs(np.ndarray)})
  np.testing.assert_array_equal(got[key], params['embedder']['input_embedding'])
