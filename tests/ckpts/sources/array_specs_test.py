"""Sizes that zarr says are compared with the bytes on disk."""

import json
import os
import shutil

from etils import epath
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

from gemma4_lora.ckpts.sources import _array_specs
from gemma4_lora.ckpts.sources import _open

_GOOD = {
    'shape': [3, 4],
    'chunks': [3, 4],
    'dtype': '<f4',
    'compressor': {'id': 'zstd'},
    'order': 'C',
    'filters': None,
}
_GOOD3 = {
    'shape': [3, 4],
    'chunk_grid': {'configuration': {'chunk_shape': [3, 2]}},
    'data_type': 'float32',
    'codecs': [{'name': 'bytes', 'configuration': {'endian': 'little'}}],
}


def _parse(values, name='.zarray'):
  data = json.dumps(values).encode()
  return _array_specs.parse(data, name=name, where='/there/a', who='T')


def test_both_versions_are_read():
  spec = _parse(_GOOD)
  assert (spec.shape, spec.chunks, spec.itemsize) == ((3, 4), (3, 4), 4)
  spec.check_bytes(30, who='T')
  assert _parse({**_GOOD, 'dtype': 'bfloat16'}).itemsize == 2
  spec = _parse(_GOOD3, 'zarr.json')
  assert spec.counts == (1, 2)
  names = [str(x) for x in spec.files(epath.Path('a'))]
  assert names == ['a/c/0/0', 'a/c/0/1']
  assert _parse({**_GOOD, 'shape': [], 'chunks': []}).counts == ()


@pytest.mark.parametrize(
    ('values', 'match'),
    [
        ({'shape': [2**63, 4]}, 'its shape cannot be'),
        ({'shape': [-1, 4]}, 'its shape cannot be'),
        ({'shape': '34'}, 'its shape cannot be'),
        ({'chunks': [3]}, 'its shape of chunks cannot be'),
        ({'chunks': [0, 4]}, 'its shape of chunks cannot be'),
        ({'shape': [2**40, 4]}, 'there would be 366503875926 chunks'),
        ({'order': 'F'}, 'its order cannot be F'),
        ({'dtype': '>f4'}, 'its dtype cannot be >f4'),
        ({'dtype': None}, 'its dtype cannot be None'),
        ({'compressor': []}, r'its compressor cannot be \[\]'),
        ({'filters': [{'id': 'delta'}]}, 'its filters cannot be'),
        ({'dimension_separator': 3}, 'its separator cannot be 3'),
    ],
)
def test_what_orbax_does_not_write_is_an_error(values, match):
  with pytest.raises(ValueError, match=f'T: /there/a is damaged: .*{match}'):
    _parse({**_GOOD, **values})


def test_codecs_that_orbax_does_not_write_are_an_error():
  inner = [{'name': 'transpose', 'configuration': {'order': [1, 0]}}]
  outer = [{'name': 'sharding_indexed', 'configuration': {'codecs': inner}}]
  with pytest.raises(ValueError, match='its codecs cannot be .*transpose'):
    _parse({**_GOOD3, 'codecs': outer}, 'zarr.json')


@pytest.mark.parametrize('field', ['shape', 'chunks'])
def test_more_than_the_bytes_can_hold_is_an_error(field):
  values = {**_GOOD, 'chunks': [2**40, 4], field: [2**40, 4]}
  spec = _parse({**_GOOD, 'shape': [2**40, 4], 'chunks': [2**40, 4]} | values)
  with pytest.raises(
      ValueError, match=r'by its .*\[1099511627776, 4\] there w'
  ):
    spec.check_bytes(1000, who='T')


@pytest.fixture(name='folders')
def _folders(tmp_path):
  """A checkpoint with a folder for each array."""
  path = epath.Path(tmp_path / 'c')
  handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False)
  with ocp.Checkpointer(handler) as ckpt:
    tree = {'w': jnp.ones((3, 4)), 'b': jnp.ones(2)}
    ckpt.save(path, args=ocp.args.PyTreeSave(tree))
  return path


def _check(path):
  source = _open.open_source(path, who='T')
  source.check({x.key for x in source.leaves.values()}, who='T')


def test_an_array_of_2_to_the_40_does_not_end_the_process(folders):
  _check(folders)
  file = folders / 'w' / '.zarray'
  said = json.loads(file.read_text())
  file.write_text(
      json.dumps(said | {'shape': [2**40, 4], 'chunks': [2**40, 4]})
  )
  with pytest.raises(ValueError, match=f'{file} is damaged: by its shape'):
    _check(folders)
  file.write_text('<html>')
  with pytest.raises(
      ValueError, match='cannot read the metadata of .*w/.zarray.*Invalid JSON'
  ):
    _check(folders)


def test_what_orbax_says_of_a_file_can_be_printed(folders):
  file = folders / '_METADATA'
  text = file.read_text()
  file.write_text(text.replace('"jax.Array"', '"\\u001b[31m"'))
  assert file.read_text() != text
  with pytest.raises(ValueError, match='cannot read the metadata') as e:
    _check(folders)
  assert r'\x1b[31m' in str(e.value)


def test_a_pipe_in_a_checkpoint_is_an_error(folders):
  shutil.rmtree(folders / 'b')
  os.mkfifo(folders / 'b')
  with pytest.raises(ValueError, match=f'{folders}/b is a pipe'):
    _check(folders)
