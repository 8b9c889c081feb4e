"""The one restore: what it frees, what it says, and how it reads."""

import math
import re

import jax
import jax.numpy as jnp
from kauldron import kd
import numpy as np
import pytest

from gemma4_lora import _trees
from gemma4_lora import g4
from gemma4_lora.ckpts.restore import _read
from gemma4_lora.ckpts.restore import _restore_plan
from gemma4_lora.ckpts.sources import _open
from gemma4_lora.host import _devices
from tests.lib import states

_E2B = 'Gemma4_E2B'


def test_frees_what_it_replaces(checkpoint):
  """Old base arrays are freed, so that no second model is in memory."""
  path, _ = checkpoint(_E2B)
  state = states.make_state(_E2B, lora='ours')
  out = g4.ckpts.PartialLoad(path=path).transform(state)
  for key, leaf in _trees.flatten(state.params).items():
    assert leaf.is_deleted() != _trees.is_lora(key)
  assert not any(x.is_deleted() for x in jax.tree.leaves(out))


@pytest.mark.parametrize('which', [min, max])
def test_a_device_that_takes_no_array_is_an_error(
    which, checkpoint, monkeypatch
):
  """Arrays are placed in other threads: the first one, and the last."""
  path, params = checkpoint(_E2B)
  shape = which((x.shape for x in jax.tree.leaves(params)), key=math.prod)
  place = _devices.place

  def full(value, like):
    if value.shape == shape:
      raise MemoryError('the device is full')
    return place(value, like)

  monkeypatch.setattr(_devices, 'place', full)
  with pytest.raises(MemoryError, match='the device is full'):
    g4.ckpts.PartialLoad(path=path).transform(states.make_state(_E2B))


def test_frees_no_array_that_stays_in_the_state(checkpoint):
  """An array that is also elsewhere in the state keeps its value there."""
  path, _ = checkpoint(_E2B)
  state = states.make_state(_E2B)
  scale = state.params['final_norm']['scale']
  state = state.replace(opt_state={'ema': scale})
  out = g4.ckpts.PartialLoad(path=path).transform(state)
  np.asarray(out.opt_state['ema'])
  assert out.opt_state['ema'] is scale


def test_the_same_array_at_several_leaves(checkpoint):
  """Zeros that a caller made once for many leaves are no problem."""
  path, params = checkpoint(_E2B)
  state = states.make_state(_E2B)
  zeros = jnp.zeros((32,), jnp.bfloat16)
  for i in range(6):
    state.params[f'layer_{i}']['pre_ffw_norm']['scale'] = zeros
  out = g4.ckpts.PartialLoad(path=path).transform(state)
  assert not states.differing(out.params, params)


def test_numpy_state(checkpoint):
  """NumPy leaves stay NumPy."""
  path, params = checkpoint(_E2B)
  state = states.make_state(_E2B)
  state = state.replace(params=jax.tree.map(np.asarray, state.params))
  out = g4.ckpts.PartialLoad(path=path).transform(state)
  assert all(type(x) is np.ndarray for x in jax.tree.leaves(out.params))
  assert not states.differing(out.params, params)


def test_uncommitted_arrays_stay_uncommitted(checkpoint):
  """So that they can still be used with arrays on other devices."""
  path, _ = checkpoint(_E2B)
  state = states.make_state(_E2B)
  device = jax.devices()[3]
  embedder = state.params['embedder']
  embedder['input_embedding'] = jax.device_put(
      embedder['input_embedding'], device
  )
  params = g4.ckpts.PartialLoad(path=path).transform(state).params
  assert not params['final_norm']['scale'].committed
  assert params['embedder']['input_embedding'].committed
  assert params['embedder']['input_embedding'].devices() == {device}


def test_abstract_leaf_with_sharding(checkpoint):
  """A shape that names a sharding gets it."""
  path, params = checkpoint(_E2B)
  mesh = jax.make_mesh((8,), ('d',), axis_types=(jax.sharding.AxisType.Auto,))
  sharding = jax.NamedSharding(mesh, jax.P('d'))
  state = states.make_state(_E2B)
  state.params['embedder']['input_embedding'] = jax.ShapeDtypeStruct(
      (1024, 32), jnp.bfloat16, sharding=sharding
  )
  out = g4.ckpts.PartialLoad(path=path).transform(state)
  assert out.params['embedder']['input_embedding'].sharding == sharding
  assert not states.differing(out.params, params)


def test_says_what_it_did(checkpoint, caplog):
  """One line: leaves, bytes, layout, place, time."""
  path, params = checkpoint(_E2B, 'flat', dtype=jnp.float32)
  caplog.set_level('INFO', logger='absl')
  state = states.make_state(_E2B, lora='ours')
  out = g4.ckpts.PartialLoad(path=path).transform(state)
  want = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  assert not states.differing(out.params, want)
  (line,) = [m for m in caplog.messages if 'PartialLoad' in m]
  assert re.fullmatch(
      r'PartialLoad: restored 95 leaves \(0\.001 GB, layout flat\) from'
      rf' {path} in \d+\.\d s \(\d+\.\d\d GB/s\);'
      r' converted 95 leaves from float32 to bfloat16',
      line,
  )


def _loads(path, state):
  """Plans a restore; returns the source, the loads and the old leaves."""
  source = _open.open_source(path, who='T')
  old = {('params', *k): v for k, v in _trees.flatten(state.params).items()}
  model = tuple(
      _restore_plan.ModelLeaf(path=k, rel=k[1:], shape=v.shape, dtype=v.dtype)
      for k, v in old.items()
  )
  tree = _restore_plan.SubTree(
      new=('params',),
      old=('params',),
      model=model,
      stored=tuple(source.leaves.values()),
  )
  return source, _restore_plan.make_plan([tree]).loads, old


@pytest.mark.parametrize('layout', ['nested', 'stacked'])
def test_reads_the_largest_first_and_frees_in_between(checkpoint, layout):
  """Groups are no larger than they may be, but for arrays that are.

  While one of those is placed, two groups are read: not another of those.
  """
  path, params = checkpoint(_E2B, layout)
  state = states.make_state(_E2B)
  source, loads, old = _loads(path, state)
  limit = 10_000
  sizes = []
  new = {}
  for group in _read.read(source, loads, old, group_bytes=limit):
    sizes.append((sum(x.nbytes for x in group.values()), len(group)))
    new |= group
  assert sizes[0][0] == max(x.nbytes for x in new.values()) > limit
  assert len(sizes) > 5
  small = [n <= limit for n, _ in sizes]
  last = len(small) - small[::-1].index(False)
  between = ''.join('.' if x else 'L' for x in small[:last])
  num_large, num_small = between.count('L'), small.count(True)
  spread = 'L...' * min(num_large, num_small // 3)
  assert num_large > 1 < num_small and between.startswith(spread.rstrip('.'))
  want = {('params', *k): v for k, v in states.base_leaves(params).items()}
  assert {k: np.asarray(v).tobytes() for k, v in new.items()} == {
      k: v.tobytes() for k, v in want.items()
  }


def test_sharded_file_is_read_shard_by_shard(tmp_path):
  """Of a file that was saved in shards, devices read their own chunks."""
  sharding = kd.sharding.FSDPSharding(min_size_to_shard_mb=0)
  run = states.make_state(_E2B, seed=1, sharding=sharding)
  with kd.ckpts.Checkpointer(workdir=tmp_path, save_interval_steps=1) as ckpt:
    ckpt.save(run, step=1, force=True)
    ckpt.wait_until_finished()
  state = states.make_state(_E2B, sharding=sharding)
  source, loads, old = _loads(tmp_path, state)
  cut = [
      _read._cuts_along_chunks(x.stored, old[x.model.path].sharding)
      for x in loads
  ]
  chunked = [x for x in loads if x.stored.chunk_shape != x.stored.shape]
  assert all(cut) and len(chunked) > 50
  before = states.specs(state)
  out = g4.ckpts.PartialLoad(path=tmp_path).transform(state)
  assert states.specs(out) == before
  assert not states.differing(out.params, run.params)
  # And so does a state that is not sharded, or sharded otherwise.
  out = g4.ckpts.PartialLoad(path=tmp_path).transform(states.make_state(_E2B))
  assert not states.differing(out.params, run.params)


def test_each_device_gets_its_part_of_a_large_array(checkpoint, monkeypatch):
  monkeypatch.setattr(_devices, '_LARGE_BYTES', 0)
  path, params = checkpoint(_E2B)
  sharding = kd.sharding.FSDPSharding(min_size_to_shard_mb=0)
  state = states.make_state(_E2B, sharding=sharding)
  before = states.specs(state)
  out = g4.ckpts.PartialLoad(path=path).transform(state)
  assert states.specs(out) == before
  sharded = [
      x for x in jax.tree.leaves(out.params) if not x.is_fully_replicated
  ]
  assert len(sharded) > 20
  want = states.base_leaves(params)
  for key, leaf in states.base_leaves(out.params).items():
    np.testing.assert_array_equal(leaf, want[key], err_msg=str(key))


def test_reads_nothing_but_what_it_needs(checkpoint):
  """Leaves that nothing takes are not read: their data may even be gone."""
  path, params = checkpoint(_E2B)
  source, loads, old = _loads(path, states.make_state(_E2B))
  few = [x for x in loads if x.model.rel[0] == 'layer_2']
  (group,) = _read.read(source, few, old)
  assert group.keys() == {x.model.path for x in few}
  np.testing.assert_array_equal(
      group['params', 'layer_2', 'mlp', 'linear'],
      params['layer_2']['mlp']['linear'],
  )
