"""Models, adapters and logits that Hugging Face wrote, as gemma has them.

The name map is written out here a second time, by hand: what the package's own
table says is compared against it.
"""

import dataclasses
import json
import pathlib
from typing import Any

from gemma import gm
import numpy as np
import safetensors.numpy

from gemma4_lora.gemma4 import _unified_vision
from gemma4_lora.gemma4 import _upstream

TESTDATA = pathlib.Path(__file__).parents[1] / 'testdata' / 'hf'
# PEFT folders there, and the model that each is for.
ADAPTERS = {
    'ad_e': 'e',
    'ad_e_mm': 'e_mm',
    'ad_e_dora': 'e',
    'ad_e_full': 'e',
    'ad_dense': 'dense',
    'ad_dense_rslora_patterns': 'dense',
    'ad_moe': 'moe',
    'ad_moe_gu': 'moe',
    'ad_moe_dn': 'moe',
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
  """A model of Hugging Face's, as gemma has it.

  Attributes:
    model: The gemma model, in float32.
    params: Its parameters, nested.
    tokens: i32[B L].
    logits: f32[B L V], by transformers.
  """

  model: Any
  params: dict[str, Any]
  tokens: np.ndarray
  logits: np.ndarray


def load(name: str) -> Reference:
  """Loads a base model and its logits; `image_cases` has vision's weights."""
  hf = json.loads((TESTDATA / name / 'config.json').read_text())
  weights = tensors(name)
  config = _gemma_config(hf)
  data = np.load(TESTDATA / f'{name}.npz')
  return Reference(
      model=gm.nn.Gemma4_E2B(
          tokens='batch.input',
          config=config,
          dtype=np.float32,
          text_only=config.vision_encoder is None,
      ),
      params=_gemma_params(weights, config),
      tokens=data['tokens'],
      logits=data['logits'],
  )


def tensors(name: str) -> dict[str, np.ndarray]:
  """Returns the base model's tensors by Hugging Face's names."""
  return safetensors.numpy.load_file(TESTDATA / name / 'model.safetensors')


def _gemma_config(hf: dict[str, Any]) -> _upstream.TransformerConfig:
  """Hugging Face's config in gemma's terms."""
  vision = None
  if 'text_config' in hf:  # Multimodal.
    vision = _vision_encoder(hf['vision_config'])
    hf = hf['text_config']
  types = {
      'sliding_attention': _upstream.AttentionType.LOCAL_SLIDING,
      'full_attention': _upstream.AttentionType.GLOBAL,
  }
  layer_types = tuple(types[t] for t in hf['layer_types'])
  num_layers = len(layer_types)
  shared = hf['num_kv_shared_layers']
  last = hf['per_layer_config'][str(num_layers - 1)]  # It is a global layer.
  moe = hf.get('enable_moe_block', False)
  return _upstream.TransformerConfig(
      num_embed=hf['vocab_size'],
      embed_dim=hf['hidden_size'],
      hidden_dim=hf['intermediate_size'],
      num_heads=hf['num_attention_heads'],
      head_dim=hf['head_dim'],
      num_kv_heads=hf['num_key_value_heads'],
      num_global_kv_heads=last.get('num_key_value_heads'),
      global_key_size=last['head_dim'],
      k_eq_v_global=hf['attention_k_eq_v'],
      final_logit_softcap=hf['final_logit_softcapping'],
      use_post_attn_norm=True,
      use_post_ffw_norm=True,
      attention_types=layer_types,
      sliding_window_size=hf['sliding_window'],
      global_rope_proportion=0.25,
      local_rope_proportion=1.0,
      local_base_frequency=10_000,
      global_base_frequency=1_000_000,
      per_layer_input_dim=hf.get('hidden_size_per_layer_input', 0),
      kv_cache_sharing_config=_upstream.KVCacheSharingConfig(
          frac_shared_layers=shared / num_layers,
          share_global=True,
          share_local=True,
      )
      if shared
      else None,
      override_kv_shared_ffw_hidden=2 * hf['intermediate_size']
      if hf['use_double_wide_mlp']
      else None,
      enable_moe=moe,
      num_experts=hf.get('num_experts') or 0,
      expert_dim=hf.get('moe_intermediate_size') or 0,
      top_k_experts=hf.get('top_k_experts') or 0,
      moe_dense_hidden_dim=hf['intermediate_size'] if moe else 0,
      use_bidirectional_attention=hf['use_bidirectional_attention'],
      vision_encoder=vision,
  )


def _vision_encoder(hf: dict[str, Any]) -> Any:
  """Hugging Face's config of the vision tower in gemma's terms."""
  if hf['model_type'] == 'gemma4_unified_vision':
    return _unified_vision.UnifiedVision(
        d_model=hf['mm_embed_dim'],
        patch_size=hf['patch_size'],
        num_positions=hf['mm_posemb_size'],
    )
  return _upstream.VisionEncoder(
      d_model=hf['hidden_size'],
      num_layers=hf['num_hidden_layers'],
      num_heads=hf['num_attention_heads'],
      ffw_hidden=hf['intermediate_size'],
      patch_size=hf['patch_size'],
      pos_emb_shape_yx=(hf['position_embedding_size'], 2),
      use_clipped_linears=hf['use_clipped_linears'],
      standardize_embeddings=hf['standardize'],
  )


def _gemma_params(
    weights: dict[str, np.ndarray], config: _upstream.TransformerConfig
) -> dict[str, Any]:
  """Hugging Face's weights in gemma's tree."""
  weights = {
      k.removeprefix('model.').removeprefix('language_model.'): v
      for k, v in weights.items()
  }
  embedder = {'input_embedding': weights['embed_tokens.weight']}
  if config.per_layer_input_dim:
    size = (config.num_layers, config.per_layer_input_dim)
    embedder |= {
        'per_layer_embeddings': weights[
            'embed_tokens_per_layer.weight'
        ].reshape(-1, *size),
        'per_layer_model_projection': {
            'w': weights['per_layer_model_projection.weight'].T.reshape(
                -1, *size
            )
        },
        'per_layer_projection_norm': {
            'scale': weights['per_layer_projection_norm.weight']
        },
    }
  params = {
      'embedder': embedder,
      'final_norm': {'scale': weights['norm.weight']},
  }
  for i in range(config.num_layers):
    prefix = f'layers.{i}.'
    layer = {
        k.removeprefix(prefix).removesuffix('.weight'): v
        for k, v in weights.items()
        if k.startswith(prefix)
    }
    params[f'layer_{i}'] = _layer(layer, config, i)
  return params


def _layer(
    hf: dict[str, np.ndarray], config: _upstream.TransformerConfig, i: int
) -> dict[str, Any]:
  """One layer. What a KV-shared layer lacks is filled with NaN: unused."""
  is_global = config.attention_types[i] == _upstream.AttentionType.GLOBAL
  size = config.global_key_size if is_global else config.head_dim
  kv_heads = (is_global and config.num_global_kv_heads) or config.num_kv_heads
  unused = np.full((kv_heads * size, config.embed_dim), np.nan, np.float32)

  def heads(w, n):  # (N*H, D) -> (N, D, H)
    return w.reshape(n, size, -1).transpose(0, 2, 1)

  k = heads(hf.get('self_attn.k_proj', unused), kv_heads)
  attn = {
      'q_einsum': {'w': heads(hf['self_attn.q_proj'], config.num_heads)},
      'attn_vec_einsum': {
          'w': hf['self_attn.o_proj'].T.reshape(config.num_heads, size, -1)
      },
      'query_norm': {'scale': hf['self_attn.q_norm']},
      'key_norm': {
          'scale': hf.get(
              'self_attn.k_norm', np.full((size,), np.nan, np.float32)
          )
      },
  }
  if is_global and config.k_eq_v_global:
    attn['k_einsum'] = {'w': k}
  else:
    v = heads(hf.get('self_attn.v_proj', unused), kv_heads)
    attn['kv_einsum'] = {'w': np.stack([k, v])}

  def scale(name):
    return {'scale': hf[name]}

  dense = {
      'gating_einsum': np.stack([hf['mlp.gate_proj'], hf['mlp.up_proj']]),
      'linear': hf['mlp.down_proj'].T,
  }
  layer = {
      'attn': attn,
      'skip_scale': hf['layer_scalar'],
      'pre_attention_norm': scale('input_layernorm'),
      'post_attention_norm': scale('post_attention_layernorm'),
      'post_ffw_norm': scale('post_feedforward_layernorm'),
  }
  if config.enable_moe:
    gate_up = hf['experts.gate_up_proj']
    layer |= {
        'mlp2': dense,
        'pre_ffw2_norm': scale('pre_feedforward_layernorm'),
        'post_ffw2_norm': scale('post_feedforward_layernorm_1'),
        'pre_ffw_norm': scale('pre_feedforward_layernorm_2'),
        'post_ffw1_norm': scale('post_feedforward_layernorm_2'),
        'mlp': {
            'gating_einsum': {
                'w': gate_up.reshape(
                    len(gate_up), 2, config.expert_dim, config.embed_dim
                )
            },
            'linear': {'w': hf['experts.down_proj'].swapaxes(1, 2)},
            'router_logits': {'w': hf['router.proj'].T},
            'router_scale': hf['router.scale'],
            'per_expert_scale': hf['router.per_expert_scale'],
        },
    }
  else:
    layer |= {
        'mlp': dense,
        'pre_ffw_norm': scale('pre_feedforward_layernorm'),
    }
  if config.per_layer_input_dim:
    layer |= {
        'per_layer_input_gate': {'w': hf['per_layer_input_gate'].T},
        'per_layer_projection': {'w': hf['per_layer_projection'].T},
        'post_per_layer_input_norm': scale('post_per_layer_input_norm'),
    }
  return layer
