"""The mask of padding patches, on the vision tower's attention alone."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4_lora.gemma4 import _upstream
from gemma4_lora.gemma4.forward import _patch_mask

_SIZES = dict(num_heads=2, num_kv_heads=2, features=8, head_dim=4)
# Of 4 patches, the last two are padding, of which none attends to any.
_IS_REAL = np.array([[True, True, False, False]])
_MASK = _IS_REAL[:, :, None] & _IS_REAL[:, None, :]
_POSITIONS = np.zeros((1, 4, 2), np.int32)


class _Right(_upstream.VisionAttention):
  """As a gemma would be that reads a boolean mask as one, and no other."""

  def _qkv(self, *, q, k, v, attn_mask):
    attn_mask = jnp.where(attn_mask, 0.0, -1e30)
    return super()._qkv(q=q, k=k, v=v, attn_mask=attn_mask)


def _params():
  rng = np.random.default_rng(0)

  def weight(*shape):
    return {'w': rng.normal(size=shape).astype(np.float32)}

  return {
      'q_einsum': weight(2, 8, 4),
      'kv_einsum': weight(2, 2, 8, 4),
      'attn_vec_einsum': weight(2, 4, 8),
  }


def _patches(dtype=np.float32):
  return jnp.asarray(np.random.default_rng(1).normal(size=(1, 4, 8)), dtype)


def _apply(cls, x):
  """Returns what real patches get, under the interceptor made for the class."""
  with nn.intercept_methods(_patch_mask.exclude_padding(cls)):
    apply = jax.jit(cls(**_SIZES).apply)
    return apply({'params': _params()}, x, _POSITIONS, _MASK)[:, :2]


def test_an_attention_that_is_right_is_left_alone():
  """And computes what the repaired one does: its own mask would be refused."""
  assert _patch_mask.excludes_masked_keys(_Right)
  np.testing.assert_allclose(
      _apply(_Right, _patches()),
      _apply(_upstream.VisionAttention, _patches()),
      rtol=1e-6,
  )


def test_it_is_seen_while_a_caller_is_traced():
  seen = []

  @jax.jit
  def traced(x):
    # Without the cache, as if nothing had asked before.
    seen.append(_patch_mask.excludes_masked_keys.__wrapped__(_Right))
    return x

  jax.eval_shape(jax.grad(traced), 1.0)
  assert seen == [True]


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_padding_is_finite_in_small_dtypes(dtype):
  """Its rows see nothing: a lowest number of float32 would be -inf, and NaN."""
  with nn.intercept_methods(_patch_mask.exclude_padding()):

    @jax.jit
    @jax.grad
    def gradient(x):
      params = jax.tree.map(lambda p: p.astype(dtype), _params())
      attention = _upstream.VisionAttention(**_SIZES)
      return attention.apply({'params': params}, x, _POSITIONS, _MASK).sum()

    got = gradient(_patches(dtype))
  assert got.dtype == dtype
  assert np.isfinite(np.asarray(got, np.float32)).all()
