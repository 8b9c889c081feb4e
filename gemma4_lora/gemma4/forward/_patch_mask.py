"""Keeps padding patches of an image out of the vision tower's attention.

Images are padded to one number of patches, so most images have padding. gemma
4.0.1 and HEAD (4.1.0, 7691fd4) add the tower's boolean mask to the attention
scores as it is: real patches get +1, and padding patches are attended to.
https://github.com/google-deepmind/gemma/blob/main/gemma/gm/nn/gemma4/vision/_modules.py

We replace the mask by one that may be added. One run of gemma's attention shows
whether it needs that, so that a release which treats the mask correctly is not
changed. Remove this module once such a release is the lower bound.
"""

from collections.abc import Callable
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gemma4_lora.gemma4 import _upstream


def exclude_padding(
    attention: type[nn.Module] = _upstream.VisionAttention,
) -> Callable[..., Any]:
  """Returns an interceptor, to be used for one call of the model.

  Args:
    attention: The class of the tower's attention.
  """
  # Computed here, outside the interceptors of the call.
  is_right = excludes_masked_keys(attention)

  def interceptor(next_fun, args, kwargs, context):
    if is_right or not _upstream.is_vision_attention(
        context.module, context.method_name
    ):
      return next_fun(*args, **kwargs)
    return next_fun(**_with_additive_mask(*args, **kwargs))

  return interceptor


@functools.cache
def excludes_masked_keys(cls: type[nn.Module]) -> bool:
  """Whether a key that a boolean mask excludes has no effect on the output.

  Args:
    cls: A class like gemma's attention of the vision tower.
  """
  attention = cls(
      num_heads=1, num_kv_heads=1, features=4, head_dim=4, parent=None
  )
  eye = np.eye(4, dtype=np.float32)
  params = {
      'q_einsum': {'w': eye[None]},
      'kv_einsum': {'w': np.stack([eye, eye])[:, None]},
      'attn_vec_einsum': {'w': eye[None]},
  }
  # Two images of two patches each. The second patches differ, and are padding.
  x = eye[[[0, 1], [0, 2]]]
  positions = np.zeros((2, 2, 2), np.int32)
  mask = np.zeros((2, 2, 2), bool)
  mask[..., 0] = True
  with jax.ensure_compile_time_eval():  # Even if a caller is being traced.
    y = jax.jit(attention.apply)({'params': params}, x, positions, mask)
    one, other = np.asarray(y)[:, 0]
  return bool(np.abs(one - other).max() < 1e-2)  # In gemma 4.0.1, 0.24.


def _with_additive_mask(
    x: jax.Array, segment_pos: jax.Array, attn_mask: Any, **others: Any
) -> dict[str, Any]:
  """Returns the attention's arguments, with 0 for true and -1e38 for false.

  Finite, so that padding patches, which attend to nothing, get no NaN.
  """
  if attn_mask is not None and attn_mask.dtype == bool:
    # Half of the lowest, so that no score added to it overflows.
    lowest = jnp.finfo(x.dtype).min / 2
    attn_mask = jnp.where(attn_mask, 0, lowest).astype(x.dtype)
  return {
      'x': x,
      'segment_pos': segment_pos,
      'attn_mask': attn_mask,
      **others,
  }
