"""What we know of gemma's Gemma 4 classes, checked on gemma 4.0.1 and 4.1.0.

Gemma keeps them private: every private import of `gemma.gm.nn.gemma4` in this
package stands here, but for those of `testing`.
"""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
from gemma import gm
from gemma.gm.nn.gemma4 import _config
from gemma.gm.nn.gemma4 import _layers
from gemma.gm.nn.gemma4 import _modules
from gemma.gm.nn.gemma4 import _transformer
import jax

Transformer = _transformer.Transformer
TransformerConfig = _config.TransformerConfig
RMSNorm = _layers.RMSNorm

# The modules that hold a linear's weight and apply it in their own `__call__`.
EINSUMS = (_layers.Einsum, _layers.ClippedEinsum)


# The released models, by whose configs the tables differ.
RELEASED = (
    gm.nn.Gemma4_E2B,
    gm.nn.Gemma4_E4B,
    gm.nn.Gemma4_31B,
    gm.nn.Gemma4_26B_A4B,
)


def weight(module: nn.Module) -> jax.Array:
  """Returns the weight of a linear, once its call has made it."""
  value: Any = module.get_variable('params', module.weight_name)
  # Checkpoints may hold `{'w': array}`, which the linear itself unwraps.
  return value['w'] if isinstance(value, Mapping) else value


def check_is_gemma4(model: nn.Module, *, argument: str) -> None:
  """Raises if `model` is not one of gemma's Gemma 4 models.

  Args:
    model: What the user passed.
    argument: How the user passed it, for the message: `g4.nn.LoRA(model=...)`.

  Raises:
    ValueError: Anything but gemma's Gemma 4, another wrapper included.
  """
  if not isinstance(model, Transformer):
    got = f'{type(model).__module__}.{type(model).__qualname__}'
    raise ValueError(
        f'{argument} takes a Gemma 4 model: gm.nn.Gemma4_E2B, Gemma4_E4B,'
        f' Gemma4_31B or Gemma4_26B_A4B. Got: {got}. For older Gemma models use'
        ' gm.nn.LoRA.'
    )


def is_global(config: TransformerConfig, layer: int) -> bool:
  """Whether a layer attends to the whole sequence, not to a window."""
  return config.attention_types[layer] == _modules.AttentionType.GLOBAL


def shares_kv(config: TransformerConfig) -> tuple[bool, ...]:
  """Per layer: whether it reads another layer's keys and values.

  Such a layer declares `kv_einsum` and `key_norm` of its own, computes them and
  throws the result away.
  """
  sources = _config.create_kv_cache_sharing_patterns(
      config.kv_cache_sharing_config,
      config.num_layers,
      config.attention_types,
  )
  return tuple(i != source for i, source in enumerate(sources))


def key_size(config: TransformerConfig, layer: int) -> int:
  """Width of one attention head."""
  if is_global(config, layer) and config.global_key_size is not None:
    return config.global_key_size
  return config.head_dim


def num_kv_heads(config: TransformerConfig, layer: int) -> int:
  """Number of key and value heads."""
  if is_global(config, layer) and config.num_global_kv_heads is not None:
    return config.num_global_kv_heads
  return config.num_kv_heads


def k_is_v(config: TransformerConfig, layer: int) -> bool:
  """Whether one projection gives both keys and values."""
  return is_global(config, layer) and config.k_eq_v_global


def mlp_width(config: TransformerConfig, layer: int) -> int:
  """Hidden width of the dense MLP."""
  if config.enable_moe:
    return config.moe_dense_hidden_dim
  if (
      shares_kv(config)[layer]
      and config.override_kv_shared_ffw_hidden is not None
  ):
    return config.override_kv_shared_ffw_hidden
  return config.hidden_dim
