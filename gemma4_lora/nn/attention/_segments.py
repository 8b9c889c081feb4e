"""Rows of several conversations, told apart by positions that restart at 0."""

from typing import Any

import jax
import jax.numpy as jnp


def is_packed(
    *,
    positions: Any = None,
    attention_mask: Any = None,
    cache: Any = None,
    **_: Any,
) -> bool:
  """Whether rows may hold several conversations. False in samplers.

  Args:
    positions: Positions in the model's call.
    attention_mask: The mask in the model's call; samplers pass one.
    cache: The cache in the model's call; samplers pass one.
  """
  return positions is not None and attention_mask is None and cache is None


def segments(positions: jax.Array) -> jax.Array:
  """Returns the number of each token's conversation in its row.

  Each token of padding, at position 0, has a number of its own.

  Args:
    positions: i32 `[*B, L]`, from 0 in each conversation.

  Returns:
    i32 `[*B, L]`, growing.
  """
  return jnp.cumsum(positions == 0, axis=-1)


def attention_mask(tokens: jax.Array, positions: jax.Array) -> jax.Array:
  """Returns who may attend to whom: causally, within a conversation.

  Args:
    tokens: i32 `[*B, L]`; 0 is padding.
    positions: i32 `[*B, L]`

  Returns:
    bool `[*B, L, L]`
  """
  at = segments(positions)
  same = at[..., :, None] == at[..., None, :]
  causal = jnp.tri(tokens.shape[-1], dtype=bool)
  return same & causal & (tokens != 0)[..., None, :]


def check(*, positions: Any, images: Any, audio: Any) -> None:
  """Raises for inputs whose conversations gemma cannot keep apart.

  Raises:
    ValueError: Images or audio in packed rows.
  """
  if positions is not None and (images is not None or audio is not None):
    raise ValueError(
        'positions= of packed rows do not go with images or audio: gemma makes'
        ' masks of its own for those. Train on them unpacked, without'
        ' g4.nn.LoRA(positions=...).'
    )
