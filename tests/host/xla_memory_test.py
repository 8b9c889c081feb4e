"""Arrays that XLA allocates and a checkpoint fills."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4_lora import g4
from gemma4_lora.gemma4 import _upstream
from gemma4_lora.host import _xla_memory
from tests.lib import hf_reference
from tests.lib import states
from tests.lib import training

_BFLOAT16 = np.dtype(jnp.bfloat16)
_SHAPE = (50, 60)


@pytest.fixture(autouse=True)
def one_cpu(monkeypatch):
  """The tests' process has eight devices; and no large arrays."""
  monkeypatch.setattr(_xla_memory, '_is_one_cpu', lambda: True)
  monkeypatch.setattr(_xla_memory, '_MIN_BYTES', 1000)


def _count(out):
  out[:] = np.arange(out.size).reshape(out.shape)


def test_the_memory_is_xlas_own():
  """A program that may overwrite it does, without a copy."""
  array = _xla_memory.filled(_SHAPE, _BFLOAT16, _count)
  assert isinstance(array, jax.Array) and not array.committed
  want = np.arange(3000).reshape(_SHAPE).astype(_BFLOAT16)
  np.testing.assert_array_equal(array, want)
  address = array.unsafe_buffer_pointer()
  add = jax.jit(lambda x: x + 1, donate_argnums=0)
  assert add(array).unsafe_buffer_pointer() == address
  assert array.is_deleted()


def test_arrays_of_one_shape_have_one_program():
  def fill_with(value):
    def fill(out):
      out[:] = value

    return _xla_memory.filled((70, 80), _BFLOAT16, fill)

  before = _xla_memory._make._cache_size()
  values = [fill_with(i)[3, 4] for i in range(3)]
  assert values == [0, 1, 2]
  assert _xla_memory._make._cache_size() == before + 1


@pytest.mark.parametrize(
    ('shape', 'dtype'),
    [((3,), _BFLOAT16), (_SHAPE, np.dtype(np.int8)), (_SHAPE, np.dtype('f8'))],
    ids=str,
)
def test_what_is_small_or_not_xlas_is_numpys(shape, dtype):
  array = _xla_memory.filled(shape, dtype, _count)
  assert isinstance(array, np.ndarray)
  assert (array.shape, array.dtype) == (shape, dtype)
  np.testing.assert_array_equal(array.reshape(-1)[:3], [0, 1, 2])


def test_an_error_is_the_one_that_was_raised():
  error = FileNotFoundError('gone')

  def fill(out):
    del out
    raise error

  with pytest.raises(FileNotFoundError) as info:
    _xla_memory.filled(_SHAPE, _BFLOAT16, fill)
  assert info.value is error
  assert not _xla_memory._fills and not _xla_memory._errors


def _paths(checkpoint):
  for layout in ('nested', 'stacked', 'kauldron'):
    yield *checkpoint('Gemma4_E2B', layout), states.model('Gemma4_E2B')
  for name in ('e', 'moe'):
    ref = hf_reference.load(name)
    yield hf_reference.TESTDATA / name, ref.params, ref.model


@pytest.mark.parametrize('where', ['uncommitted', 'first', 'second', 'all'])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_restores_the_same(where, dtype, checkpoint):
  """Wherever the state is, and whatever its dtype."""
  devices = jax.devices()
  mesh = jax.sharding.Mesh(devices, 'x')
  shardings = {
      'uncommitted': None,
      'first': jax.sharding.SingleDeviceSharding(devices[0]),
      'second': jax.sharding.SingleDeviceSharding(devices[1]),
      'all': jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()),
  }
  for path, params, model in _paths(checkpoint):
    shapes = _upstream.abstract_params(model)
    state = states.wrap(
        jax.tree.map(
            lambda x: jax.device_put(
                jnp.ones(x.shape, dtype), shardings[where]
            ),
            shapes,
        )
    )
    before = states.specs(state)
    out = g4.ckpts.PartialLoad(path=path).transform(state)
    assert states.specs(out) == before
    got = training.flat(out.params)
    for name, value in training.flat(params).items():
      if not np.isnan(value).any():  # Not in the file: KV-shared layers.
        want = np.asarray(value, dtype)
        np.testing.assert_array_equal(got[name], want, name)
