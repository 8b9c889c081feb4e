"""Runs Gemma 4's attention in blocks, by Flax's interceptor.

https://github.com/google-deepmind/gemma/blob/main/gemma/gm/nn/gemma4/_modules.py
"""

from typing import Any

import jax

from gemma4_lora.gemma4 import _upstream
from gemma4_lora.gemma4.forward import _attention_math
from gemma4_lora.nn.attention import _blockwise
from gemma4_lora.nn.attention import _segments
from gemma4_lora.nn.attention import _splash

# Kinds of attention that hold no array of queries by keys.
_IN_BLOCKS = {'blockwise': _blockwise, 'splash': _splash}


def check(attention: str) -> None:
  """Raises ValueError for an unknown attention."""
  names = ['gemma', *_IN_BLOCKS]
  if attention not in names:
    raise ValueError(
        f'g4.nn.LoRA(attention={attention!r}): there is'
        f' {", ".join(map(repr, names))}.'
    )


def is_in_blocks(attention: str) -> bool:
  """Whether `BlockwiseAttention` computes it instead of gemma."""
  return attention in _IN_BLOCKS


class BlockwiseAttention:
  """Interceptor for one call of the model, without a cache.

  Keys and values of KV-shared layers, which gemma computes and throws away, are
  not computed.

  Attributes:
    key: Says all that the result depends on.
  """

  def __init__(
      self, attention: str, *, is_causal: bool, is_packed: bool = False
  ):
    """Initialises.

    Args:
      attention: A kind of attention that is computed in blocks.
      is_causal: Whether the mask is the one that gemma makes from the tokens.
        Other masks (the user's, or that of images) are read block by block.
      is_packed: Whether positions that restart keep conversations apart.
    """
    self.key = f'{attention} attention causal={is_causal} packed={is_packed}'
    if attention == 'splash':
      self.key += f' {_splash.key()}'
    self._module = _IN_BLOCKS[attention]
    self._is_causal = is_causal
    self._is_packed = is_packed
    self._inputs_mask = None

  def __call__(self, next_fun, args, kwargs, context):
    module = context.module
    if module.is_initializing():
      return next_fun(*args, **kwargs)
    if _upstream.is_blocks_method(module, context.method_name):
      inputs = args[0] if args else kwargs['inputs']
      self._inputs_mask = inputs.inputs_mask
      return next_fun(*args, **kwargs)
    if context.method_name != '__call__' or not isinstance(
        module, _upstream.Attention
    ):
      return next_fun(*args, **kwargs)
    return self._attend(
        module, **_attention_math.attention_arguments(*args, **kwargs)
    )

  def _attend(
      self,
      module: _upstream.Attention,
      *,
      x: jax.Array,
      positions: jax.Array,
      mask: jax.Array,
      shared: Any,
      skips_window: bool,
  ) -> tuple[Any, jax.Array]:
    """Returns keys and values for KV-shared layers, and the layer's output."""
    q = _attention_math.queries(module, x, positions)
    if shared is None:
      k, v = _attention_math.keys_and_values(module, x, positions)
    else:
      k, v = shared['k'], shared['v']
    if self._is_causal:
      allowed = _blockwise.Allowed(
          positions=positions,
          valid=self._inputs_mask,
          segments=_segments.segments(positions) if self._is_packed else None,
      )
    else:
      allowed = _blockwise.Allowed(positions=positions, mask=mask)
    settings = _blockwise.Settings(
        window=None if skips_window else _attention_math.window(module),
        soft_cap=module.attn_logits_soft_cap,
    )
    encoded = self._module.attend(settings, q, k, v, allowed)
    output = module.attn_vec_einsum('BTNH,NHD->BTD', encoded)
    return {'k': k, 'v': v}, output
