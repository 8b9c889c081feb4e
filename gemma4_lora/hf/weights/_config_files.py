"""`config.json` and `generation_config.json` of transformers, from a model.

What follows from the model is compared with a config that is given: one of
another model is an error. Fields that do not follow from it, like ids of tokens,
are taken from there, or are those of the released models:
https://github.com/huggingface/transformers/blob/main/src/transformers/models/gemma4/configuration_gemma4.py
"""

from collections.abc import Mapping
import re
from typing import Any

from gemma4_lora.gemma4 import _hf_names
from gemma4_lora.gemma4 import _upstream
from gemma4_lora.host.files import _regular

CONFIG = 'config.json'
GENERATION = 'generation_config.json'

_Fields = dict[str, Any]
_LAYER_TYPES = {
    _upstream.AttentionType.LOCAL_SLIDING: 'sliding_attention',
    _upstream.AttentionType.GLOBAL: 'full_attention',
}
_ACTIVATION = 'gelu_pytorch_tanh'
_EPSILON = 1e-6
# Of the released models, by their model cards: E2B and E4B, and the larger ones.
_EDGE_LENGTH, _LENGTH = 131_072, 262_144
_TEXT_IDS = {'bos_token_id': 2, 'eos_token_id': 1, 'pad_token_id': 0}
_TAGS = {
    'audio_token_id': 258_881,
    'boa_token_id': 256_000,
    'boi_token_id': 255_999,
    'eoa_token_index': 258_883,
    'eoi_token_id': 258_882,
    'image_token_id': 258_880,
    'video_token_id': 258_884,
}
# `<eos>`, `<turn|>`, `<|tool_response>`: where a turn of the model ends.
_ENDS = (1, 106, 50)
# `<audio|>` and `<image|>`, which 12B is kept from saying.
_SUPPRESSED = (258_883, 258_882)
# By the name in `per_layer_config`, which transformers 5.23 and later write.
_GLOBAL = {
    'head_dim': 'global_head_dim',
    'num_key_value_heads': 'num_global_key_value_heads',
}
# Settings of the base's quantising, which the written weights do not have.
_NOT_OURS = ('quantization_config', 'transformers_version')


def model_config(
    shapes: Mapping[str, tuple[int, ...]],
    config: _upstream.TransformerConfig,
    *,
    name: str,
    dtype: str,
    like: Mapping[str, Any] | None = None,
    where: str = '',
) -> _Fields:
  """Returns the fields of `config.json`.

  Args:
    shapes: Shapes of all tensors by their names in the files.
    config: The model's config; its towers may differ or be missing.
    name: Class of transformers.
    dtype: The weights' dtype.
    like: A config of the same model, for fields that do not follow from it.
    where: Where that is, for the message.

  Raises:
    ValueError: `like` is of another model.
  """
  like = {k: v for k, v in (like or {}).items() if k not in _NOT_OURS}
  unified = _hf_names.is_unified_class(name)
  text, defaults = _text(config, unified=unified)
  theirs = _part(like, 'text_config', where) if 'text_config' in like else like
  text = _with(text, defaults, theirs, where=f'{where}: text_config')
  fields = {'architectures': [name], 'dtype': dtype}
  if _hf_names.prefix(name, 'vision') is None:
    return text | fields
  made = {
      'vision_config': _unified_vision(shapes) if unified else _vision(shapes),
      'audio_config': _unified_audio(shapes) if unified else _audio(shapes),
  }
  parts = {
      key: part and _with(*part, like.get(key) or {}, where=f'{where}: {key}')
      for key, part in made.items()
  }
  top = _TAGS | {'initializer_range': 0.02}
  if 'text_config' in like:
    top |= like
  model_type = 'gemma4_unified' if unified else 'gemma4'
  return (
      top
      | fields
      | parts
      | {
          'model_type': model_type,
          'text_config': text,
          'tie_word_embeddings': True,
      }
  )


def generation_config(
    config: _upstream.TransformerConfig, *, name: str
) -> _Fields:
  """Returns the fields of `generation_config.json`, as released.

  Args:
    config: The model's config: ids beyond its vocabulary are left out.
    name: Class of transformers.
  """
  ends = [x for x in _ENDS if x < config.num_embed]
  fields = _TEXT_IDS | {
      'do_sample': True,
      'eos_token_id': ends,
      'temperature': 1.0,
      'top_k': 64,
      'top_p': 0.95,
  }
  if _hf_names.is_unified_class(name) and config.num_embed > max(_SUPPRESSED):
    fields['suppress_tokens'] = list(_SUPPRESSED)
  return fields


def _text(
    config: _upstream.TransformerConfig, *, unified: bool
) -> tuple[_Fields, _Fields]:
  """Returns what follows from the model, and what may be otherwise."""
  made = {
      'model_type': 'gemma4_unified_text' if unified else 'gemma4_text',
      'attention_k_eq_v': config.k_eq_v_global,
      'final_logit_softcapping': config.final_logit_softcap,
      'global_head_dim': config.global_key_size or config.head_dim,
      'head_dim': config.head_dim,
      'hidden_activation': _ACTIVATION,
      'hidden_size': config.embed_dim,
      'intermediate_size': (
          config.moe_dense_hidden_dim or config.hidden_dim
          if config.enable_moe
          else config.hidden_dim
      ),
      'layer_types': [_LAYER_TYPES[x] for x in config.attention_types],
      'num_attention_heads': config.num_heads,
      'num_global_key_value_heads': config.num_global_kv_heads,
      'num_hidden_layers': config.num_layers,
      'num_key_value_heads': config.num_kv_heads,
      'num_kv_shared_layers': sum(_upstream.shares_kv(config)),
      'rms_norm_eps': _EPSILON,
      'rope_parameters': {
          'full_attention': {
              'partial_rotary_factor': config.global_rope_proportion,
              'rope_theta': float(config.global_base_frequency),
              'rope_type': 'proportional',
          },
          'sliding_attention': {
              'rope_theta': float(config.local_base_frequency),
              'rope_type': 'default',
          },
      },
      'sliding_window': config.sliding_window_size,
      'tie_word_embeddings': True,
      'use_bidirectional_attention': config.use_bidirectional_attention,
      'use_double_wide_mlp': bool(config.override_kv_shared_ffw_hidden),
      'vocab_size': config.num_embed,
  }
  if not unified:
    made |= {
        'enable_moe_block': config.enable_moe,
        'hidden_size_per_layer_input': config.per_layer_input_dim,
        'vocab_size_per_layer_input': config.num_embed,
    }
  else:
    # llama.cpp's converter asks for it, and transformers' class has no default.
    made['moe_intermediate_size'] = None
  if config.enable_moe:
    made |= {
        'moe_intermediate_size': config.expert_dim,
        'num_experts': config.num_experts,
        'top_k_experts': config.top_k_experts,
    }
  is_edge = config.per_layer_input_dim > 0
  return made, _TEXT_IDS | {
      'attention_bias': False,
      'attention_dropout': 0.0,
      'initializer_range': 0.02,
      'max_position_embeddings': _EDGE_LENGTH if is_edge else _LENGTH,
      'use_cache': True,
  }


def _vision(
    shapes: Mapping[str, tuple[int, ...]],
) -> tuple[_Fields, _Fields] | None:
  start = 'model.vision_tower.'
  if not (tower := _below(shapes, start)):
    return None
  layer = 'encoder.layers.0'
  width, pixels = tower['patch_embedder.input_proj.weight']
  queries, _ = tower[f'{layer}.self_attn.q_proj.linear.weight']
  keys, _ = tower[f'{layer}.self_attn.k_proj.linear.weight']
  (head,) = tower[f'{layer}.self_attn.q_norm.weight']
  return {
      'model_type': 'gemma4_vision',
      'head_dim': head,
      'hidden_activation': _ACTIVATION,
      'hidden_size': width,
      'intermediate_size': tower[f'{layer}.mlp.gate_proj.linear.weight'][0],
      'num_attention_heads': queries // head,
      'num_hidden_layers': _num_layers(tower),
      'num_key_value_heads': keys // head,
      'patch_size': _side(pixels),
      'position_embedding_size': tower[
          'patch_embedder.position_embedding_table'
      ][1],
      'rms_norm_eps': _EPSILON,
      'standardize': 'std_scale' in tower,
      'use_clipped_linears': f'{layer}.mlp.gate_proj.input_max' in tower,
  }, {
      'attention_bias': False,
      'attention_dropout': 0.0,
      'initializer_range': 0.02,
      'max_position_embeddings': _EDGE_LENGTH,
      'pooling_kernel_size': 3,
      'rope_parameters': {'rope_theta': 100.0, 'rope_type': 'axial'},
  }


def _unified_vision(
    shapes: Mapping[str, tuple[int, ...]],
) -> tuple[_Fields, _Fields]:
  tower = _below(shapes, 'model.vision_embedder.')
  positions, _, width = tower['pos_embedding']
  side = _side(tower['patch_dense.weight'][1])
  pooling = 3
  return {
      'model_type': 'gemma4_unified_vision',
      'mm_embed_dim': width,
      'mm_posemb_size': positions,
      'output_proj_dims': width,
      'patch_size': side // pooling,
      'pooling_kernel_size': pooling,
      'rms_norm_eps': _EPSILON,
  }, {'initializer_range': 0.02}


def _unified_audio(
    shapes: Mapping[str, tuple[int, ...]],
) -> tuple[_Fields, _Fields] | None:
  shape = shapes.get('model.embed_audio.embedding_projection.weight')
  if shape is None:
    return None
  return {
      'model_type': 'gemma4_unified_audio',
      'audio_embed_dim': shape[1],
      'rms_norm_eps': _EPSILON,
  }, {'initializer_range': 0.02}


def _audio(
    shapes: Mapping[str, tuple[int, ...]],
) -> tuple[_Fields, _Fields] | None:
  if not (tower := _below(shapes, 'model.audio_tower.')):
    return None
  layer = 'layers.0'
  output, width = tower['output_proj.weight']
  (head,) = tower[f'{layer}.self_attn.per_dim_scale']
  *_, kernel = tower[f'{layer}.lconv1d.depthwise_conv1d.weight']
  return {
      'model_type': 'gemma4_audio',
      'conv_kernel_size': kernel,
      'hidden_size': width,
      'num_attention_heads': width // head,
      'num_hidden_layers': _num_layers(tower),
      'output_proj_dims': output,
      'rms_norm_eps': _EPSILON,
      'subsampling_conv_channels': [
          tower[f'subsample_conv_projection.layer{i}.conv.weight'][0]
          for i in range(2)
      ],
      'use_clipped_linears': (f'{layer}.self_attn.q_proj.input_max' in tower),
  }, {
      'attention_chunk_size': 12,
      'attention_context_left': 13,
      'attention_context_right': 0,
      'attention_invalid_logits_value': -1e9,
      'attention_logit_cap': 50.0,
      'gradient_clipping': 1e10,
      'hidden_act': 'silu',
      'initializer_range': 0.02,
      'residual_weight': 0.5,
  }


def _below(
    shapes: Mapping[str, tuple[int, ...]], start: str
) -> dict[str, tuple[int, ...]]:
  return {
      name.removeprefix(start): shape
      for name, shape in shapes.items()
      if name.startswith(start)
  }


def _num_layers(tower: Mapping[str, Any]) -> int:
  numbers = (re.search(r'(?:^|\.)layers\.(\d+)\.', name) for name in tower)
  return 1 + max(int(match[1]) for match in numbers if match)


def _side(pixels: int) -> int:
  """Side of a patch with three colours."""
  return round((pixels / 3) ** 0.5)


def _part(like: Mapping[str, Any], key: str, where: str) -> _Fields:
  """Returns an object in a config; an empty one if there is none."""
  value = like.get(key) or {}
  if not isinstance(value, dict):
    raise ValueError(
        f'{where}: {key} should be an object of JSON. Got:'
        f' {_regular.shown(value)}'
    )
  return value


def _with(
    made: _Fields, defaults: _Fields, theirs: Mapping[str, Any], *, where: str
) -> _Fields:
  """Returns the made fields, and the rest of theirs or the defaults."""
  theirs = _released(theirs, where)
  wrong = [
      f'{key} is {_regular.shown(theirs[key])} there,'
      f' {_regular.shown(made[key])} in the model'
      for key in sorted(made.keys() & theirs.keys() - {'model_type'})
      if (theirs[key] or None) != (made[key] or None)
  ]
  if wrong:
    raise ValueError(f'{where} is of another model: {"; ".join(wrong)}.')
  return defaults | theirs | made


def _released(theirs: Mapping[str, Any], where: str) -> _Fields:
  """Returns fields as the released files have them.

  What global layers have otherwise stands in two fields, which all versions of
  transformers and all servers read.
  """
  theirs = dict(theirs)
  layers = _part(theirs, 'per_layer_config', where)
  theirs.pop('per_layer_config', None)
  for number in layers:
    fields = _part(layers, number, f'{where}: per_layer_config')
    theirs |= {_GLOBAL.get(key, key): value for key, value in fields.items()}
  return theirs
