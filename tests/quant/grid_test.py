"""Weights on a grid of 4-bit integers lose nothing."""

import jax.numpy as jnp
import numpy as np
import pytest

from gemma4_lora.quant import _grid


def _on_grid(scale_dtype, dtype, *, codes=(-8, 8), size=32, num=8000, seed=0):
  """Groups of `code * scale`, rounded, as a training run would leave them."""
  rng = np.random.default_rng(seed)
  codes = rng.integers(*codes, size=(num, size)).astype(np.float32)
  scales = np.exp(rng.uniform(-9, 1, num)).astype(np.float32)
  scales = np.asarray(jnp.asarray(scales).astype(scale_dtype), np.float32)
  return jnp.asarray(codes * scales[:, None]).astype(dtype)


def _back(codes, scales, dtype):
  codes, scales = np.asarray(codes, np.float32), np.asarray(scales, np.float32)
  return jnp.asarray(codes * scales[:, None]).astype(dtype)


@pytest.mark.parametrize(
    ('scale_dtype', 'dtype', 'codes', 'size'),
    [
        ('bfloat16', 'bfloat16', (-8, 8), 32),
        ('bfloat16', 'float32', (-8, 8), 32),
        ('float32', 'bfloat16', (-8, 8), 32),
        ('float32', 'float32', (-7, 8), 128),
        # Not all codes are there: the largest is none of 7 and 8.
        ('bfloat16', 'bfloat16', (-3, 4), 32),
        ('float32', 'bfloat16', (-1, 2), 32),
    ],
)
def test_weights_on_a_grid_lose_nothing(scale_dtype, dtype, codes, size):
  w = _on_grid(scale_dtype, dtype, codes=codes, size=size)
  got = _grid.quantize(w, scale_dtype=jnp.dtype(scale_dtype))
  np.testing.assert_array_equal(_back(*got, dtype), w)
  assert got[0].dtype == jnp.int4
  assert got[1].dtype == scale_dtype


def test_groups_beside_a_grid_do_not_keep_others_from_it():
  w = _on_grid('bfloat16', 'bfloat16', num=400)
  noise = np.random.default_rng(1).standard_normal((200, 32))
  w = w.at[::2].set(jnp.asarray(noise, jnp.bfloat16))
  codes, scales = _grid.quantize(w, scale_dtype=jnp.dtype('bfloat16'))
  back = _back(codes, scales, 'bfloat16')
  np.testing.assert_array_equal(back[1::2], w[1::2])
  error = np.abs(np.asarray(back[::2] - w[::2], np.float32))
  # Half a step, and what the scale is rounded.
  largest = np.abs(noise).max(-1, keepdims=True)
  assert (error <= largest / 7.5 * 0.52 + 0.01).all()
  assert (error > 0).any()
