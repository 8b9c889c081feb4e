"""Gemma 4 12B, of which gemma has no class."""

import dataclasses
from typing import Any

from gemma import gm

from gemma4_lora.gemma4 import _unified_vision
from gemma4_lora.gemma4 import _upstream

_NUM_LAYERS = 48
_WIDTH = 3840

# Gemma's field names a class that this is none of.
_VISION: Any = _unified_vision.UnifiedVision(d_model=_WIDTH)
# What differs from 31B.
_CONFIG = dataclasses.replace(
    gm.nn.Gemma4_31B.config,
    embed_dim=_WIDTH,
    hidden_dim=4 * _WIDTH,
    num_heads=16,
    num_kv_heads=8,
    num_global_kv_heads=1,
    attention_types=_upstream.attention_types(
        [layer % 6 == 5 for layer in range(_NUM_LAYERS)]
    ),
    vision_encoder=_VISION,
)


class Gemma4_12B(_upstream.Gemma4Base):
  """Gemma 4 12B: 11,907,350,320 parameters of its text.

  48 layers, five local ones to each global one; width 3840; 16 heads, of 256 on
  local layers and 512 on global ones; 8 heads of keys and values, 1 on global
  layers, where the values are the keys. All else of the text is 31B's.

  With `text_only=False` it takes images, in the same patches as other models;
  there is no vision encoder between pixels and text. Audio is not implemented.

  No checkpoint in gemma's layouts was released. `g4.ckpts.PartialLoad(path=…)`
  reads the safetensors of `google/gemma-4-12B-it`, which transformers has as
  `Gemma4UnifiedForConditionalGeneration`.
  """

  config: _upstream.TransformerConfig = _CONFIG
