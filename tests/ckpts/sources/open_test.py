"""Arrays of Orbax: read straight into their memory, or left to Orbax."""

from etils import epath
import jax
import numpy as np
import orbax.checkpoint as ocp

from gemma4_lora import _trees
from gemma4_lora.ckpts.sources import _open
from gemma4_lora.ckpts.sources import _stream

_E2B = 'Gemma4_E2B'
_INLINE_BYTES = 1024  # Orbax puts smaller values into the index.


def test_every_large_array_of_a_released_checkpoint_is(checkpoint):
  path, params = checkpoint(_E2B)
  arrays = _stream.list_whole(epath.Path(path))
  source = _open.open_source(path, who='T')
  names = {m.name: k for k, m in _trees.flatten(source.tree).items()}
  flat = _trees.flatten(params)
  for name, key in names.items():
    leaf = flat[key] if key in flat else flat[key[:-1]]  # `…linear.w`
    if name not in arrays:
      assert leaf.nbytes <= _INLINE_BYTES
      continue
    got = arrays[name].begin()()
    assert (got.shape, got.dtype) == (leaf.shape, leaf.dtype)
    assert got.tobytes() == leaf.tobytes()
  assert len(arrays) > 20


def test_arrays_in_several_chunks_are_left_to_orbax(tmp_path):
  array = np.random.default_rng(0).standard_normal((64, 64))
  tree = {'one': array, 'many': array}
  args = {'one': ocp.SaveArgs(), 'many': ocp.SaveArgs(chunk_byte_size=2048)}
  handler = ocp.PyTreeCheckpointHandler()
  with ocp.Checkpointer(handler) as checkpointer:
    checkpointer.save(tmp_path / 'c', ocp.args.PyTreeSave(tree, save_args=args))
  assert set(_stream.list_whole(epath.Path(tmp_path / 'c'))) == {'one'}
  source = _open.open_source(tmp_path / 'c', who='T')
  got = source.read({(k,): ocp.RestoreArgs(np.ndarray) for k in tree})
  for name, want in tree.items():
    np.testing.assert_array_equal(got[name,], want)


def test_all_devices_get_the_same(checkpoint):
  """One read per array, whatever the shards."""
  path, params = checkpoint(_E2B)
  source = _open.open_source(path, who='T')
  assert jax.device_count() == 8
  key = ('embedder', 'input_embedding')
  got = source.read({key: ocp.RestoreArgs(np.ndarray)})
  np.testing.assert_array_equal(got[key], params['embedder']['input_embedding'])
