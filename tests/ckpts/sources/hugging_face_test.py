"""Checkpoints in a bucket: the same arrays as on disk, by ranges.

Safetensors, and Orbax: one process for both, as it takes long to start.
"""

import collections
import itertools
import json
import shutil
import time

from etils import epath
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

from gemma4_lora import _trees
from gemma4_lora.ckpts.sources import _hugging_face
from gemma4_lora.ckpts.sources import _open
from gemma4_lora.ckpts.sources import _stream
from gemma4_lora.host.ranges import _neighbours
from gemma4_lora.host.ranges import _ranges
from gemma4_lora.host.ranges import _read_ahead
from tests.lib import hf_reference

_SHARDS = ('a.safetensors', 'b.safetensors')
_PACKED = 'model.layers.0.self_attn.q_proj.weight'


@pytest.fixture(name='local')
def _local(buckets, tmp_path, checkpoint):
  """A folder of checkpoints, copied to two buckets."""
  sharded = tmp_path / 'models' / 'sharded'
  sharded.mkdir(parents=True)
  weights = hf_reference.tensors('dense')
  for i, file in enumerate(_SHARDS):
    part = dict(list(weights.items())[i::2])
    safetensors.numpy.save_file(part, sharded / file)
  names = {k: _SHARDS[i % 2] for i, k in enumerate(weights)}
  index = {'metadata': {}, 'weight_map': names}
  (sharded / 'model.safetensors.index.json').write_text(json.dumps(index))

  packed = tmp_path / 'models' / 'packed'
  packed.mkdir()
  out, size = weights.pop(_PACKED).shape
  rng = np.random.default_rng(0)
  codes = rng.integers(-(2**31), 2**31, (out, size // 8))
  weights[f'{_PACKED}_packed'] = codes.astype(np.int32)
  weights[f'{_PACKED}_scale'] = rng.random((out, size // 8), np.float32)
  weights[f'{_PACKED}_shape'] = np.asarray([out, size], np.int64)
  safetensors.numpy.save_file(weights, packed / 'model.safetensors')

  shutil.copytree(hf_reference.TESTDATA / 'e_mm', tmp_path / 'models' / 'mm')
  shutil.copytree(checkpoint('Gemma4_31B')[0], tmp_path / 'models' / 'orbax')
  for bucket in ('whole', 'by-rows'):
    buckets.upload(tmp_path / 'models', buckets.make(bucket))
  return tmp_path / 'models'


def test_arrays_and_rows_are_those_of_the_disk(buckets, local):
  """Shards, towers, packed weights; each byte is read once."""
  buckets.fail('by-rows.*a.safetensors', after_bytes=3000, times=1, first=4)
  buckets.call(_read, buckets, local)
  by_object = collections.defaultdict(list)
  for x in buckets.requests('whole'):
    # Not what TensorFlow reads: the index of the shards.
    if x.range and 'alt=media' in x.target and 'orbax' not in x.object:
      first, last = map(int, x.range.split('-'))
      assert x.sent == last + 1 - first
      by_object[x.object].append((first, last + 1))
  assert len(by_object) == len(_SHARDS) + 2
  for name, ranges in by_object.items():
    ranges.sort()
    starts, ends = zip(*ranges, strict=True)
    assert len(ranges) > 5
    assert starts == (0, *ends[:-1]), name
    assert ends[-1] == (buckets.folder('whole') / name).stat().st_size


def _read(buckets, local) -> None:
  """Is a process in which there are buckets."""
  _ranges._HEAD_BYTES = 999
  _read_ahead.PIECE_BYTES = _neighbours._SMALL_BYTES = 5000
  for name in ('sharded', 'mm', 'packed'):
    _compare(local, name)
  _compare_orbax(buckets, local)
  _count_questions(buckets)
  _change_meanwhile(buckets, local)


def _compare(local, name) -> None:
  want = _hugging_face.open_source(epath.Path(local / name), who='T')
  whole, by_rows = (
      _hugging_face.open_source(epath.Path(bucket) / name, who='T')
      for bucket in ('gs://whole', 'gs://by-rows')
  )
  assert whole.leaves == want.leaves
  num_rows = 0
  for key in want.leaves:
    value = want.reader(key)()
    np.testing.assert_array_equal(whole.reader(key)(), value, str(key))
    if value.shape and (rows := by_rows.open_rows(key)):
      parts = [rows.read(i, i + 1) for i in range(len(value))]
      np.testing.assert_array_equal(np.concatenate(parts), value, str(key))
      np.testing.assert_array_equal(rows.read(0, 1), value[:1])
      num_rows += 1
  assert num_rows, name


def _compare_orbax(buckets, local) -> None:
  """Its arrays are read once too, and its large ones by rows."""
  want = _open.open_source(local / 'orbax', who='T')
  got = _open.open_source('gs://whole/orbax', who='T')
  args = {x.key: ocp.RestoreArgs(np.ndarray) for x in want.leaves.values()}
  # Not by `reader`, which begins to read.
  streamed = [
      key for key in args if _trees.get_at(got.tree, key).name in got._whole
  ]
  assert len(streamed) > 10
  before = len(buckets.requests())
  arrays = got.read({key: args[key] for key in streamed})
  for key, value in want.read({key: args[key] for key in streamed}).items():
    np.testing.assert_array_equal(arrays[key], value, str(key))
  ranges = sorted(
      (x.object, *map(int, x.range.split('-')))
      for x in buckets.requests()[before:]
      if x.range  # Not whether there are digests.
  )
  for (name, _, last), (other, first, _) in itertools.pairwise(ranges):
    assert other != name or first > last
  _stream._SMALL_BYTES = 0
  key = max(streamed, key=lambda x: arrays[x].nbytes)
  rows = got.open_rows(key)
  np.testing.assert_array_equal(rows.read(1, 3), arrays[key][1:3])


def _count_questions(buckets) -> None:
  """Opening takes few answers after one another, and asks nothing twice."""
  before = len(buckets.requests())
  source = _open.open_source('gs://by-rows/mm', who='T')
  asked = [
      (x.object, x.range, x.target.partition('?')[2])
      for x in buckets.requests()[before:]
      if 'tensorstore=' not in x.target
  ]
  # Is it a file, is it a folder, what is in it, is it whole, how long is the file.
  assert len(set(asked)) == len(asked) <= 5, asked
  # What is read is on its way before anybody waits for it: here of many tensors.
  before = len(buckets.requests())
  loads = [source.reader(key) for key in source.leaves]
  deadline = time.monotonic() + 20
  while len(buckets.requests()) < before + 20 and time.monotonic() < deadline:
    time.sleep(0.05)
  assert len(buckets.requests()) >= before + 20
  del loads


def _change_meanwhile(buckets, local) -> None:
  """Changes a file after it was opened."""
  url = f'{buckets.make("changes")}/model.safetensors'
  buckets.upload(local / 'mm' / 'model.safetensors', url)
  file = _ranges.open_file(epath.Path(url))
  short = local / 'short'
  short.write_bytes(bytes(20_000))
  buckets.upload(short, url)
  for start in (19_990, 30_000):
    with pytest.raises(ValueError, match=f'truncated: {url} ends too early'):
      _ranges.read(file, start, start + 20)
  buckets.fail('changes', status=403, times=1)
  with pytest.raises(ValueError, match='PERMISSION_DENIED'):
    _ranges.read(file, 9000, 9020)
  (buckets.folder('changes') / 'model.safetensors').unlink()
  with pytest.raises(FileNotFoundError, match=f'{url} is not there any more'):
    _ranges.read(file, 9000, 9020)
