"""NaN and infinite values are found in whatever holds them."""

import jax
import jax.numpy as jnp
from kauldron import kd
import ml_dtypes
import numpy as np
import pytest

from gemma4_lora.host import _finite


def _leaves():
  return {
      'good': jnp.ones(3),
      'nan': np.array([1, np.nan], ml_dtypes.bfloat16),
      'inf': jnp.array([1, np.inf]),
      'code': jnp.ones(3, jnp.int8),
      'shape': jax.ShapeDtypeStruct((3,), jnp.float32),
      'scalar': jnp.asarray(np.nan),
  }


@pytest.mark.parametrize('small', [2**26, 0])
def test_on_the_host_and_on_devices(small, monkeypatch):
  monkeypatch.setattr(_finite, '_SMALL_BYTES', small)
  leaves = _leaves()
  assert _finite.not_finite(leaves) == ['nan', 'inf', 'scalar']
  assert _finite.not_finite(leaves, infinite=False) == ['nan', 'scalar']
  assert _finite.not_finite({}) == []


def test_within_kauldrons_loop():
  """It allows no copy that is not asked for."""
  x = jnp.zeros(16).at[9].set(jnp.nan)
  x = jax.device_put(x, kd.sharding.FIRST_DIM)
  with jax.transfer_guard('disallow'):
    assert _finite.not_finite({'x': x}) == ['x']


def test_tracers_count_as_finite():
  found = []
  jax.eval_shape(lambda x: found.extend(_finite.not_finite({'x': x})), 1.0)
  assert not found
