"""What gemma's `Attention` computes around the attention itself.

Written after gemma 4.0.1 and 4.1.0:
https://github.com/google-deepmind/gemma/blob/main/gemma/gm/nn/gemma4/_modules.py
"""

from typing import Any

from gemma.gm.math import _positional_embeddings
import jax
import jax.numpy as jnp

from gemma4_lora.gemma4 import _upstream


def attention_arguments(
    x: jax.Array,
    segment_pos: jax.Array,
    cache: Any,
    attn_mask: jax.Array,
    kv_shared_cache: Any = None,
    skip_sliding_mask: bool = False,
) -> dict[str, Any]:
  """Names the arguments of `Attention`, without a cache.

  Raises:
    ValueError: There is a cache.
  """
  if cache is not None:
    raise ValueError('Attention in blocks takes no cache.')
  return {
      'x': x,
      'positions': segment_pos,
      'mask': attn_mask,
      'shared': kv_shared_cache,
      # HEAD's switch, for layers whose mask has the window in it.
      'skips_window': skip_sliding_mask,
  }


def queries(
    module: _upstream.Attention, x: jax.Array, positions: jax.Array
) -> jax.Array:
  """Returns `[B, T, N, H]`, as `Attention` makes them."""
  q = module.query_norm(module.q_einsum('BTD,NDH->BTNH', x))
  return _rotated(module, q, positions)


def keys_and_values(
    module: _upstream.Attention, x: jax.Array, positions: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns `[B, T, K, H]` each, as `Attention` makes them."""
  if module.k_eq_v:
    k = v = module.k_einsum('BSD,KDH->BSKH', x)
  else:
    k, v = module.kv_einsum('BSD,CKDH->CBSKH', x)
  k, v = module.key_norm(k), module.value_norm(v)
  return _rotated(module, k, positions), v


def no_keys_and_values(
    config: _upstream.TransformerConfig, layer: int, x: jax.Array
) -> dict[str, jax.Array]:
  """Returns zeros in the shape of keys and values that other layers read."""
  shape = (
      *x.shape[:-1],
      _upstream.num_kv_heads(config, layer),
      _upstream.key_size(config, layer),
  )
  return {'v': jnp.zeros(shape, x.dtype), 'k': jnp.zeros(shape, x.dtype)}


def window(module: _upstream.Attention) -> int | None:
  """Distance beyond which a layer attends to nothing; None if global."""
  if module.attn_type == _upstream.AttentionType.GLOBAL:
    return None
  return module.sliding_window_size


def _rotated(
    module: _upstream.Attention, x: jax.Array, positions: jax.Array
) -> jax.Array:
  return _positional_embeddings.apply_rope(
      x,
      positions,
      base_frequency=module.rope_base_frequency,
      scale_factor=module.rope_scale_factor,
      rope_proportion=module.rope_proportion,  # pyrefly: ignore[bad-argument-type]
  )
