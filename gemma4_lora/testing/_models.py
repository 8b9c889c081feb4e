"""Tiny Gemma 4 models with every feature of the released ones.

Each subclasses the released model that it stands for, so that whatever accepts
`gm.nn.Gemma4_E2B` accepts `g4.testing.Gemma4_E2B`. Sizes are chosen to differ
from one another wherever the real ones may: a swapped axis gives a shape error
rather than a wrong number.

As in the released ones, `text_only=True` (the default) drops the towers.
"""

import dataclasses
from typing import Any

from gemma4_lora.gemma4 import _sizes
from gemma4_lora.gemma4 import _unified_vision
from gemma4_lora.gemma4 import _upstream

# Two rounds of the smallest pattern with more than one local layer. The last
# unshared layer is global and the one before it local, as sharing presumes.
_ATTENTION_TYPES = _upstream.attention_types((False, False, True) * 2)

# What all have in common: vocabulary of `g4.testing.Gemma4Tokenizer`, a global
# head that is wider than the local one, a window shorter than a test sequence.
_TINY = dict(
    num_embed=1024,
    head_dim=8,
    global_key_size=16,
    attention_types=_ATTENTION_TYPES,
    sliding_window_size=8,
)

# Towers of 2 layers. The switches are those of the real ones.
_VISION = dict(
    d_model=24,
    num_layers=2,
    num_heads=2,
    ffw_hidden=36,
    patch_size=4,
    output_length=4,
    pos_emb_shape_yx=(16, 2),
)
_VISION_SWITCHES = ('use_clipped_linears', 'standardize_embeddings')
# In place of a tower: 12B's.
_UNIFIED = dict(
    d_model=24,
    patch_size=4,
    pooling_kernel_size=3,
    output_length=4,
    num_positions=16,
)
_AUDIO = _upstream.ConformerConfig(
    num_layers=2,
    model_dims=16,
    lm_model_dims=20,
    atten_num_heads=2,
    atten_left_context=3,
    conv_kernel_size=3,
)

# The last round shares the first one's keys and values.
_SHARE_HALF = _upstream.KVCacheSharingConfig(
    frac_shared_layers=0.5, share_global=True, share_local=True
)

# Image tokens are among the last of Gemma 4's vocabulary.
_FULL_VOCABULARY = 262144


def _twin(size: _sizes.Size) -> Any:
  """Returns the tiny twin of a size: 0.1 M to 0.2 M parameters."""
  real = size.cls.config
  changes: dict[str, Any] = {**_TINY, **size.tiny}
  if real.kv_cache_sharing_config:
    changes['kv_cache_sharing_config'] = _SHARE_HALF
  if isinstance(real.vision_encoder, _unified_vision.UnifiedVision):
    changes['vision_encoder'] = _unified_vision.UnifiedVision(**_UNIFIED)
  elif real.vision_encoder:
    switches = {x: getattr(real.vision_encoder, x) for x in _VISION_SWITCHES}
    changes['vision_encoder'] = _upstream.VisionEncoder(**_VISION, **switches)
  if real.audio_encoder:
    changes['audio_encoder'] = _AUDIO
  config = dataclasses.replace(real, **changes)
  name = size.name.removeprefix('Gemma4_')
  layers = f'{len(config.attention_types)} layers'
  if real.kv_cache_sharing_config:
    layers += ', half of them KV-shared'
  doc = f"""Tiny {name}: {size.features}.

  {layers}; width {config.embed_dim}; vocabulary {config.num_embed}.
  """
  return _subclass(size.cls, size.name, config, doc)


def _with_whole_vocabulary(cls: Any) -> Any:
  """Returns the twin with all of Gemma 4's tokens: 11 M to 30 M parameters."""
  config = dataclasses.replace(cls.config, num_embed=_FULL_VOCABULARY)
  doc = f'{cls.__name__}, for images.'
  return _subclass(cls, f'{cls.__name__}_Images', config, doc)


def _subclass(cls: Any, name: str, config: Any, doc: str) -> Any:
  fields = {'__annotations__': {'config': type(config)}, 'config': config}
  return type(name, (cls,), fields | {'__module__': __name__, '__doc__': doc})


_TWINS = tuple(map(_twin, _sizes.SIZES))
MODELS = {
    cls.__name__: cls for cls in (*_TWINS, *map(_with_whole_vocabulary, _TWINS))
}
globals().update(MODELS)
__all__ = tuple(MODELS)
