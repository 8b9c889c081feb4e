"""Data that is cut short is found before the state is touched."""

import shutil

from etils import epath
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts

from gemma4_lora import g4
from gemma4_lora.ckpts.sources import _integrity
from gemma4_lora.testing import _checkpoints
from tests.lib import states


def _fails(path, match):
  state = states.make_state('Gemma4_E2B', lora='ours')
  with pytest.raises(ValueError, match=match):
    g4.ckpts.PartialLoad(path=path).transform(state)
  states.assert_usable(state)


def _data_files(path):
  """The files that hold values, the largest first."""
  files = (path / 'ocdbt.process_0' / 'd').iterdir()
  return sorted(files, key=lambda f: f.stat().length, reverse=True)


def _cut(file, size):
  data = file.read_bytes()
  file.write_bytes(data[:size])


@pytest.fixture
def copy(checkpoint, tmp_path):
  path, _ = checkpoint('Gemma4_E2B')
  shutil.copytree(path, tmp_path / 'c')
  return epath.Path(tmp_path / 'c')


def test_complete(copy):
  state = states.make_state('Gemma4_E2B', lora='ours')
  g4.ckpts.PartialLoad(path=copy).transform(state)


@pytest.mark.parametrize('missing_bytes', [1, 1000])
def test_truncated_data_file(copy, missing_bytes):
  """A download that stopped, even one byte before the end of the data.

  What follows the data is an index that Orbax does not use any more.
  """
  store = ts.KvStore.open(f'file://{copy}/').result()
  ends = _integrity._file_ends(_integrity._entries(store))
  name = max(ends, key=ends.get)
  _cut(copy / name, ends[name] - missing_bytes)
  _fails(copy, 'the checkpoint is truncated: .* bytes, and holds data up to')


def test_empty_data_file(copy):
  _cut(_data_files(copy)[0], 0)
  _fails(copy, 'truncated: .* has 0 bytes')


def test_lost_data_file(copy):
  _data_files(copy)[0].unlink()
  _fails(copy, 'truncated: .* is missing')


def test_truncated_index(copy):
  """The index of values is a file of the top folder."""
  (index,) = [f for f in (copy / 'd').iterdir()]
  _cut(index, 100)
  _fails(copy, 'the index of the checkpoint is damaged or cut short')


def test_truncated_manifest(copy):
  _cut(copy / 'manifest.ocdbt', 30)
  _fails(copy, 'the index of the checkpoint is damaged or cut short')


def test_a_pointer_in_place_of_the_manifest(copy):
  pointer = b'version https://git-lfs.github.com/spec/v1\noid sha256:4d\n'
  (copy / 'manifest.ocdbt').write_bytes(pointer)
  _fails(copy, 'manifest.ocdbt is no index of Orbax: .* `git lfs pull`')


def test_lost_manifest(copy):
  (copy / 'manifest.ocdbt').unlink()
  _fails(copy, 'half-written: it has no manifest.ocdbt')


def test_truncated_tree(copy):
  """`_METADATA` is JSON, which a cut breaks."""
  _cut(copy / '_METADATA', 500)
  _fails(copy, '_METADATA of the checkpoint is damaged or cut short')


@pytest.fixture(params=[False, True], ids=['zarr', 'zarr3'])
def folders(request, tmp_path):
  """A checkpoint that has one folder for each array."""
  params = _checkpoints.random_params(
      _checkpoints.abstract_params(states.model('Gemma4_E2B'))
  )
  handler = ocp.PyTreeCheckpointHandler(
      use_ocdbt=False, use_zarr3=request.param
  )
  path = epath.Path(tmp_path / 'c')
  with ocp.Checkpointer(handler) as ckpt:
    ckpt.save(path, args=ocp.args.PyTreeSave(jax.tree.map(jnp.asarray, params)))
  return path, params


def _chunk(path):
  folder = path / 'layer_4.mlp.linear'
  file = folder / '0.0'
  return file if file.exists() else folder / 'c' / '0' / '0'


def test_folders_complete(folders):
  path, params = folders
  state = states.make_state('Gemma4_E2B', lora='ours')
  out = g4.ckpts.PartialLoad(path=path).transform(state)
  assert not states.differing(out.params, params)


def test_folders_lost_chunk(folders):
  """Zarr would read a chunk that is not there as zeros."""
  path, _ = folders
  _chunk(path).unlink()
  _fails(path, 'truncated: 1 of 1 chunks of .*layer_4.mlp.linear')


def test_folders_empty_chunk(folders):
  path, _ = folders
  _cut(_chunk(path), 0)
  _fails(path, 'truncated: 1 of 1 chunks of .*layer_4.mlp.linear')


def test_folders_lost_array(folders):
  path, _ = folders
  shutil.rmtree(path / 'layer_4.mlp.linear')
  _fails(path, 'layer_4.mlp.linear|cannot read the metadata')
