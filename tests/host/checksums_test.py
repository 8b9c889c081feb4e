"""Checksums depend on values and places, and on nothing else."""

import jax
import jax.numpy as jnp
from kauldron import kd
import numpy as np
import pytest

from gemma4_lora.host import _checksums


def _array(shape, dtype=np.float32, seed=0):
  values = np.random.default_rng(seed).integers(0, 100, shape)
  return np.asarray(jnp.asarray(values, dtype))


def _sum(x):
  return _checksums.checksums({'x': x})['x']


@pytest.mark.parametrize('dtype', ['bfloat16', 'bool'])
def test_sharding_does_not_matter(dtype):
  array = _array((48, 7, 16), dtype)
  mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(4, 2), ('a', 'b'))
  whole = _sum(array)
  for spec in [('a',), ('a', None, 'b')]:
    sharding = jax.sharding.NamedSharding(
        mesh, jax.sharding.PartitionSpec(*spec)
    )
    assert _sum(jax.device_put(array, sharding)) == whole
  assert _sum(jax.device_put(array, kd.sharding.REPLICATED)) == whole


def test_sharding_does_not_matter_where_devices_sample():
  """Pieces too large to be copied whole."""
  array = _array((512, 1024))
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ('a',))
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('a'))
  sharded = jax.device_put(array, sharding)
  assert sharded.addressable_shards[0].data.nbytes > _checksums._SMALL_BYTES  # pylint: disable=protected-access
  assert _sum(sharded) == _sum(array)


@pytest.mark.parametrize('shape', [(), (1,), (5,), (3, 5), (2, 3, 4)])
def test_every_entry_of_a_small_array_counts(shape):
  array = _array(shape)
  sums = {_sum(array)}
  for place in np.ndindex(shape):
    other = array.copy()
    other[place] += 1
    sums.add(_sum(other))
  assert len(sums) == 1 + array.size


def test_places_count():
  array = _array((40, 30))
  assert len({_sum(array), _sum(array[::-1]), _sum(array[:, ::-1])}) == 3
  # As `-0.0` and `0.0` do: bits, not values.
  assert _sum(np.zeros(3, np.float32)) != _sum(-np.zeros(3, np.float32))


def test_a_sample_of_a_large_array_reaches_its_ends():
  array = _array((300, 500), seed=1)
  for place in [(0, 0), (-1, -1), (0, -1)]:
    other = array.copy()
    other[place] += 1
    assert _sum(other) != _sum(array)
  assert np.prod(_checksums._counts((300, 500), 4096)) <= 4096  # pylint: disable=protected-access


def test_of_all_entries_each_counts_however_they_are_cut():
  array = _array((256, 40), seed=1)
  other = array.copy()
  other[103, 7] += 1
  assert _sum(other) == _sum(array)  # A sample lacks it.
  mesh = jax.make_mesh((8,), ('x',))
  cut = jax.device_put(array, jax.NamedSharding(mesh, jax.P('x')))
  sums = _checksums.checksums(
      {'array': array, 'cut': cut, 'other': other}, of_all=True
  )
  assert sums['array'] == sums['cut'] != sums['other']


def test_no_entries():
  assert _sum(np.zeros((0, 3), np.float32)) == '00000000'
