"""Tiny Gemma 4 models with every feature of the released ones.

Each subclasses the released model that it stands for, so that whatever accepts
`gm.nn.Gemma4_E2B` accepts `g4.testing.Gemma4_E2B`. Sizes are chosen to differ
from one another wherever the real ones may: a swapped axis gives a shape error
rather than a wrong number.

As in the released ones, `text_only=True` (the default) drops the towers.
"""

import dataclasses
from typing import Any

from gemma import gm

from gemma4_lora.gemma4 import _sizes
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

# Towers of 2 layers, with the switches of the real ones.
_VISION = dict(
    d_model=24,
    num_layers=2,
    num_heads=2,
    ffw_hidden=36,
    patch_size=4,
    output_length=4,
    pos_emb_shape_yx=(16, 2),
)
_CLIPPED_VISION = _upstream.VisionEncoder(**_VISION, use_clipped_linears=True)
_STANDARD_VISION = _upstream.VisionEncoder(
    **_VISION, standardize_embeddings=True
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


class Gemma4_E2B(gm.nn.Gemma4_E2B):  # pylint: disable=invalid-name
  """Tiny E2B: KV sharing, per-layer inputs, double-wide MLP, one KV head.

  6 layers, 3 of them KV-shared; width 32; vocabulary 1024; about 0.1 M
  parameters.
  """

  config: _upstream.TransformerConfig = dataclasses.replace(
      gm.nn.Gemma4_E2B.config,
      **_TINY,
      embed_dim=32,
      hidden_dim=48,
      override_kv_shared_ffw_hidden=96,
      num_heads=4,
      num_kv_heads=1,
      per_layer_input_dim=10,
      kv_cache_sharing_config=_SHARE_HALF,
      vision_encoder=_CLIPPED_VISION,
      audio_encoder=_AUDIO,
  )


class Gemma4_E4B(gm.nn.Gemma4_E4B):  # pylint: disable=invalid-name
  """Tiny E4B: KV sharing, per-layer inputs, MLPs of one width, two KV heads.

  6 layers, 3 of them KV-shared; width 40; vocabulary 1024; about 0.2 M
  parameters.
  """

  config: _upstream.TransformerConfig = dataclasses.replace(
      gm.nn.Gemma4_E4B.config,
      **_TINY,
      embed_dim=40,
      hidden_dim=56,
      num_heads=4,
      num_kv_heads=2,
      per_layer_input_dim=12,
      kv_cache_sharing_config=_SHARE_HALF,
      vision_encoder=_CLIPPED_VISION,
      audio_encoder=_AUDIO,
  )


class Gemma4_31B(gm.nn.Gemma4_31B):  # pylint: disable=invalid-name
  """Tiny 31B: dense, k = v on global layers, fewer KV heads there.

  6 layers; width 40; vocabulary 1024; about 0.1 M parameters.
  """

  config: _upstream.TransformerConfig = dataclasses.replace(
      gm.nn.Gemma4_31B.config,
      **_TINY,
      embed_dim=40,
      hidden_dim=56,
      num_heads=8,
      num_kv_heads=4,
      num_global_kv_heads=2,
      vision_encoder=_STANDARD_VISION,
  )


class Gemma4_26B_A4B(gm.nn.Gemma4_26B_A4B):  # pylint: disable=invalid-name
  """Tiny 26B_A4B: 6 experts of which 2 run, beside a dense MLP; k = v.

  6 layers; width 40; vocabulary 1024; about 0.2 M parameters.
  """

  config: _upstream.TransformerConfig = dataclasses.replace(
      gm.nn.Gemma4_26B_A4B.config,
      **_TINY,
      embed_dim=40,
      hidden_dim=24,
      moe_dense_hidden_dim=24,
      num_heads=8,
      num_kv_heads=4,
      num_global_kv_heads=2,
      vision_encoder=_STANDARD_VISION,
      num_experts=6,
      expert_dim=20,
      top_k_experts=2,
  )


# Image tokens are among the last of Gemma 4's vocabulary.
_FULL_VOCABULARY = 262144


def _with_whole_vocabulary(cls: Any) -> Any:
  """Returns the twin with all of Gemma 4's tokens: 11 M to 30 M parameters."""
  config = dataclasses.replace(cls.config, num_embed=_FULL_VOCABULARY)
  fields = {'__annotations__': {'config': type(config)}, 'config': config}
  names = {'__module__': __name__, '__doc__': f'{cls.__name__}, for images.'}
  return type(f'{cls.__name__}_Images', (cls,), names | fields)


_TWINS = tuple(globals()[name] for name in _sizes.NAMES)
MODELS = {
    cls.__name__: cls for cls in (*_TWINS, *map(_with_whole_vocabulary, _TWINS))
}
globals().update(MODELS)
__all__ = tuple(MODELS)
