"""A tiny text model as a folder of transformers."""

from collections.abc import Mapping
import json
import pathlib
from typing import Any

import numpy as np

from gemma4_lora.gemma4 import _names
from gemma4_lora.gemma4 import _upstream
from gemma4_lora.hf.weights import _shards
from gemma4_lora.hf.weights import _to_tensors

_LAYER_TYPES = {
    _upstream.AttentionType.LOCAL_SLIDING: 'sliding_attention',
    _upstream.AttentionType.GLOBAL: 'full_attention',
}


def write(
    folder: pathlib.Path,
    flat: Mapping[str, np.ndarray],
    config: _upstream.TransformerConfig,
) -> None:
  """Writes `config.json` and `model.safetensors`, of `Gemma4ForCausalLM`.

  Args:
    folder: Where. It is made if it is not there.
    flat: All leaves, by their dotted paths.
    config: The model's config.

  Raises:
    ValueError: There are leaves of towers.
  """
  shapes = {path: leaf.shape for path, leaf in flat.items()}
  name = _to_tensors.class_name(shapes)
  if name != 'Gemma4ForCausalLM':
    raise ValueError(
        "make_checkpoint: layout='hf' writes models of text alone, and this one"
        ' has towers: give one with text_only=True.'
    )
  tensors = _to_tensors.tensors(shapes, config)
  folder.mkdir(parents=True, exist_ok=True)
  writer = _shards.ShardWriter(
      folder,
      {
          tensor.name: (tensor.shape, flat[path].dtype)
          for path in flat
          for tensor in tensors[path]
      },
  )
  for path, leaf in flat.items():
    for tensor in tensors[path]:
      writer.write(tensor.name, tensor.take(leaf))
  dtype = str(flat[_names.EMBEDDING].dtype)
  values = {'architectures': [name], 'dtype': dtype} | _text_config(config)
  (folder / 'config.json').write_text(json.dumps(values, indent=2))


def _text_config(config: _upstream.TransformerConfig) -> dict[str, Any]:
  """Returns gemma's config in the terms of `Gemma4TextConfig`."""
  shares_kv = _upstream.shares_kv(config)
  experts = None, None, None
  if config.enable_moe:
    experts = config.num_experts, config.expert_dim, config.top_k_experts
  return {
      'model_type': 'gemma4_text',
      'attention_k_eq_v': config.k_eq_v_global,
      'enable_moe_block': config.enable_moe,
      'final_logit_softcapping': config.final_logit_softcap,
      'head_dim': config.head_dim,
      'hidden_activation': 'gelu_pytorch_tanh',
      'hidden_size': config.embed_dim,
      'hidden_size_per_layer_input': config.per_layer_input_dim,
      'intermediate_size': (
          config.moe_dense_hidden_dim or config.hidden_dim
          if config.enable_moe
          else config.hidden_dim
      ),
      'layer_types': [_LAYER_TYPES[x] for x in config.attention_types],
      'max_position_embeddings': 512,
      'moe_intermediate_size': experts[1],
      'num_attention_heads': config.num_heads,
      'num_experts': experts[0],
      'num_hidden_layers': config.num_layers,
      'num_key_value_heads': config.num_kv_heads,
      'num_kv_shared_layers': sum(shares_kv),
      'per_layer_config': _global_layers(config),
      'rms_norm_eps': 1e-6,
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
      'top_k_experts': experts[2],
      'use_double_wide_mlp': bool(config.override_kv_shared_ffw_hidden),
      'vocab_size': config.num_embed,
      'vocab_size_per_layer_input': config.num_embed,
  }


def _global_layers(
    config: _upstream.TransformerConfig,
) -> dict[str, dict[str, int]]:
  """Returns the fields in which global layers differ, by zero-padded numbers."""
  values = {'head_dim': config.global_key_size or config.head_dim}
  if config.num_global_kv_heads:
    values['num_key_value_heads'] = config.num_global_kv_heads
  width = len(str(config.num_layers - 1))
  return {
      f'{i:0{width}}': values
      for i, kind in enumerate(config.attention_types)
      if kind == _upstream.AttentionType.GLOBAL
  }
