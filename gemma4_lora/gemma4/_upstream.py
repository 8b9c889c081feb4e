"""What we know of gemma's Gemma 4 classes, checked on gemma 4.0.1 and 4.1.0.

Gemma keeps them private: their names, and those of their methods, stand here and
in `forward`.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import string
from typing import Any

from flax import linen as nn
from gemma.gm.nn.gemma4 import _config
from gemma.gm.nn.gemma4 import _gemma4
from gemma.gm.nn.gemma4 import _layers
from gemma.gm.nn.gemma4 import _modules
from gemma.gm.nn.gemma4 import _transformer
from gemma.gm.nn.gemma4.audio import _modules as _audio
from gemma.gm.nn.gemma4.vision import _encoder as _vision
from gemma.gm.nn.gemma4.vision import _modules as _vision_modules
from gemma.gm.nn.gemma4.vision import _preprocessing
import jax
import jax.numpy as jnp

from gemma4_lora.gemma4 import _names
from gemma4_lora.gemma4 import _sizes

Transformer = _transformer.Transformer
Gemma4Base = _gemma4._Gemma4Base  # pylint: disable=protected-access
TransformerConfig = _config.TransformerConfig
VisionEncoder = _vision.VisionEncoder
VisionAttention = _vision_modules.Attention
PreprocessedVisionInput = _transformer.PreprocessedVisionInput
ConformerConfig = _audio.ConformerConfig
AttentionType = _modules.AttentionType
KVCacheSharingConfig = _config.KVCacheSharingConfig
RMSNorm = _layers.RMSNorm
Attention = _modules.Attention
Block = _modules.Block
Embedder = _modules.Embedder
Output = _transformer.Output
Einsum = _layers.Einsum
ClippedEinsum = _layers.ClippedEinsum
resize_image = _preprocessing.aspect_ratio_preserving_resize

# The modules that hold a linear's weight and apply it in their own `__call__`.
LINEARS = (Einsum, ClippedEinsum, nn.Dense, nn.DenseGeneral)
# Size of 128 mel bins after the audio tower's two convolutions of stride 2, and
# their channels: gemma's config has neither.
AUDIO_SUBSAMPLED = (32, 32)
# Filters of those convolutions.
AUDIO_FILTERS = _audio.SubSamplingBlock.filters_list

# The method of `_moe.MoERagged` that computes the experts of sorted tokens.
EXPERTS_METHOD = '_run_ffw_and_routing'


def weight(module: nn.Module) -> Any:
  """Returns the weight of a linear, once its call has made it.

  An array, or its codes and scales if it is quantised.

  Args:
    module: One of `LINEARS`.
  """
  value: Any = module.get_variable('params', weight_name(module))
  # Checkpoints may hold `{'w': array}`, which the linear itself unwraps.
  return value['w'] if isinstance(value, Mapping) and 'w' in value else value


def without_bias(module: nn.Module, output: jax.Array) -> jax.Array:
  """Returns a linear's output without its bias.

  Two linears of Gemma 4 have a bias: the audio tower's output projection, and the
  projection of pixels of 12B.

  Args:
    module: One of `LINEARS`, once its call has made its parameters.
    output: What its call returned.
  """
  bias = module.get_variable('params', 'bias')
  return output if bias is None else output - bias.astype(output.dtype)


def check_is_gemma4(model: nn.Module, *, argument: str) -> None:
  """Raises if `model` is not one of gemma's Gemma 4 models.

  Args:
    model: The user's value.
    argument: The user's argument, for the message: `g4.nn.LoRA(model=...)`.

  Raises:
    ValueError: Anything but gemma's Gemma 4, another wrapper included.
  """
  if not isinstance(model, Transformer):
    got = f'{type(model).__module__}.{type(model).__qualname__}'
    raise ValueError(
        f'{argument} takes a Gemma 4 model: {_sizes.listed()}. Got: {got}. For'
        ' older Gemma models use gm.nn.LoRA.'
    )


def is_global(config: TransformerConfig, layer: int) -> bool:
  """Whether a layer attends to the whole sequence, not to a window."""
  return config.attention_types[layer] == AttentionType.GLOBAL


def shares_kv(config: TransformerConfig) -> tuple[bool, ...]:
  """Per layer: whether it reads another layer's keys and values.

  Such a layer declares `kv_einsum` and `key_norm` of its own, computes them and
  throws the result away.
  """
  return tuple(i != source for i, source in enumerate(kv_sources(config)))


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


def weight_name(module: nn.Module) -> str:
  """Name of the parameter that holds a linear's weight, one of `LINEARS`."""
  return getattr(module, 'weight_name', 'kernel')


def weight_scale(module: nn.Module) -> float:
  """The factor of a linear's weight; the linear is one of `LINEARS`."""
  scale = getattr(module, 'w_scale', None)
  return 1.0 if scale is None else scale


def einsum_of(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[str, jax.Array]:
  """Returns a linear's call as an einsum of its input and its weight.

  Args:
    module: One of `LINEARS`.
    args: Positional arguments of its call.
    kwargs: Keyword arguments of its call.

  Returns:
    The einsum, and the input.
  """
  if not isinstance(module, (nn.Dense, nn.DenseGeneral)):
    return _eqn_and_input(*args, **kwargs)
  (x,) = (*args, *kwargs.values())
  # The tower's `DenseGeneral`s contract trailing axes and have no batch axes.
  num_in = _length(getattr(module, 'axis', -1))
  num_out = _length(module.features)
  contracted = string.ascii_uppercase[:num_in]
  gained = string.ascii_uppercase[num_in : num_in + num_out]
  return f'...{contracted},{contracted}{gained}->...{gained}', x


def _eqn_and_input(eqn: str, x: jax.Array) -> tuple[str, jax.Array]:
  """Names the arguments of `Einsum` and `ClippedEinsum`."""
  return eqn, x


def _length(value: Any) -> int:
  return len(value) if isinstance(value, (tuple, list)) else 1


def clip_bounds(module: nn.Module) -> dict[str, jax.Array]:
  """Returns the clip bounds of a `ClippedEinsum`: `clip_input_min`, ...

  Raises:
    ValueError: The parameters lack one.
  """
  bounds = {}
  for bound in _names.CLIP_BOUNDS:
    name = f'clip_{bound}'
    bounds[name] = module.get_variable('params', name)
    if bounds[name] is None:
      path = '.'.join((*module.path, name))
      raise ValueError(f'The parameters have no {path}.')
  return bounds


def init_inputs(config: TransformerConfig) -> dict[str, Any]:
  """Returns inputs, of zeros, under which `init` makes every parameter.

  Given tokens alone, gemma makes the vision tower but neither the audio tower
  nor the towers' projections into the text width.

  Args:
    config: The model's config; without towers, tokens are enough.
  """
  inputs: dict[str, Any] = {'tokens': jnp.ones((1, 4), jnp.int32)}
  if config.vision_encoder is not None:
    patches, positions = _transformer._make_dummy_images(config.vision_encoder)  # pylint: disable=protected-access
    inputs['images'] = PreprocessedVisionInput(
        patches=patches, positions_xy=positions, soft_token_counts=(1,)
    )
  if config.audio_encoder is not None:
    inputs['audio'] = jnp.zeros((1, 1, 16000))  # One second.
    inputs['audio_lengths'] = jnp.full((1, 1), 16000)
    inputs['audio_soft_token_counts'] = (1,)
  return inputs


def abstract_params(model: nn.Module) -> dict[str, Any]:
  """Returns shapes and dtypes of all parameters, those of towers included.

  Args:
    model: A Gemma 4 model, or a wrapper of one.
  """

  def init():
    return model.init(jax.random.key(0), **init_inputs(model.config))

  return jax.eval_shape(init)['params']


def attention_types(is_global: Sequence[bool]) -> tuple[Any, ...]:
  """Returns the `attention_types` of a config."""
  return tuple(
      AttentionType.GLOBAL if g else AttentionType.LOCAL_SLIDING
      for g in is_global
  )


def is_blocks_method(module: nn.Module, method_name: str) -> bool:
  """Whether this is the method that runs the blocks, given `_Inputs`."""
  return isinstance(module, Transformer) and method_name == '_apply_attention'


def block_arguments(
    module: Transformer, inputs: Any, layer: int
) -> dict[str, Any]:
  """Returns the arguments of one block in the method that runs the blocks.

  Without its input and the keys and values that it shares; without a cache.

  Args:
    module: The model.
    inputs: Inputs of that method.
    layer: Number of the block.
  """
  mask = inputs.attention_mask
  is_local = not is_global(module.config, layer)
  if is_local and inputs.sliding_attention_mask is not None:
    mask = inputs.sliding_attention_mask
  return {
      'segment_pos': inputs.positions,
      'cache': None,
      'attn_mask': mask,
  }


def kv_sources(config: TransformerConfig) -> tuple[int, ...]:
  """Per layer: the layer whose keys and values it reads; itself if its own."""
  return tuple(
      _config.create_kv_cache_sharing_patterns(
          config.kv_cache_sharing_config,
          config.num_layers,
          config.attention_types,
      )
  )


def is_vision_method(module: nn.Module, method_name: str) -> bool:
  """Whether this is the method that makes soft tokens of the images."""
  return isinstance(module, Transformer) and method_name == '_encode_vision'


def is_vision_attention(module: nn.Module, method_name: str) -> bool:
  """Whether this is the vision tower's attention, given its mask."""
  return isinstance(module, VisionAttention) and method_name == '__call__'
