"""What Gemma 4 a file of transformers has, read off the shapes of its tensors.

A restore sees a state and a file, no config. What it needs of one is the table
of linears, and that depends on sizes which the file has.
"""

from collections.abc import Mapping
import dataclasses
import math

from gemma4_lora.gemma4 import _sizes
from gemma4_lora.gemma4 import _upstream

Shapes = Mapping[str, tuple[int, ...]]


def config(shapes: Shapes) -> _upstream.TransformerConfig:
  """Returns a config with the linears of the file.

  Settings without linears are those of E2B. Layers that share keys and values
  are not known: their MLPs may be wider than the config says.

  Args:
    shapes: Shapes by name: below the language model, or for towers below the
      model around it.

  Raises:
    ValueError: It is no Gemma 4.
  """
  num_layers = _num_layers(shapes, 'layers.')
  sizes = [
      shapes.get(f'layers.{i}.self_attn.q_norm.weight', (0,))[0]
      for i in range(num_layers)
  ]
  if (
      not num_layers
      or 'embed_tokens.weight' not in shapes
      or 'layers.0.layer_scalar' not in shapes
      or 0 in sizes
  ):
    raise ValueError('these are no weights of a Gemma 4.')
  shared_kv = [_is_k_and_v(shapes, i) for i in range(num_layers)]
  if len(set(sizes)) > 1:
    is_global = [size == max(sizes) for size in sizes]
  else:
    is_global = shared_kv
  experts = shapes.get('layers.0.experts.gate_up_proj', (0, 0, 0))
  hidden = shapes['layers.0.mlp.gate_proj.weight'][0]
  per_layer = shapes.get('per_layer_model_projection.weight', (0,))[0]
  return dataclasses.replace(
      _sizes.SIZES[0].cls.config,
      num_embed=shapes['embed_tokens.weight'][0],
      embed_dim=shapes['embed_tokens.weight'][1],
      hidden_dim=hidden,
      override_kv_shared_ffw_hidden=None,
      kv_cache_sharing_config=None,
      attention_types=_upstream.attention_types(is_global),
      num_heads=shapes['layers.0.self_attn.q_proj.weight'][0] // sizes[0],
      head_dim=min(sizes),
      global_key_size=max(sizes),
      num_kv_heads=_kv_heads(shapes, is_global, False) or 1,
      num_global_kv_heads=_kv_heads(shapes, is_global, True),
      k_eq_v_global=any(shared_kv),
      per_layer_input_dim=per_layer // num_layers,
      enable_moe=bool(experts[0]),
      num_experts=experts[0],
      expert_dim=experts[1] // 2,
      moe_dense_hidden_dim=hidden,
      vision_encoder=_vision(shapes),
      audio_encoder=_audio(shapes),
  )


def _num_layers(shapes: Shapes, prefix: str) -> int:
  numbers = {
      int(name.removeprefix(prefix).partition('.')[0])
      for name in shapes
      if name.startswith(prefix)
  }
  return 1 + max(numbers, default=-1)


def _is_k_and_v(shapes: Shapes, layer: int) -> bool:
  """Whether one projection gives both keys and values."""
  prefix = f'layers.{layer}.self_attn'
  return (
      f'{prefix}.k_proj.weight' in shapes
      and f'{prefix}.v_proj.weight' not in shapes
  )


def _kv_heads(
    shapes: Shapes, is_global: list[bool], wanted: bool
) -> int | None:
  """Number of key and value heads of global or local layers."""
  for i, kind in enumerate(is_global):
    prefix = f'layers.{i}.self_attn'
    if kind == wanted and f'{prefix}.k_proj.weight' in shapes:
      size = shapes[f'{prefix}.q_norm.weight'][0]
      return shapes[f'{prefix}.k_proj.weight'][0] // size
  return None


def _vision(shapes: Shapes) -> _upstream.VisionEncoder | None:
  prefix = 'vision_tower.encoder.layers.'
  if not (num_layers := _num_layers(shapes, prefix)):
    return None
  width, patch = shapes['vision_tower.patch_embedder.input_proj.weight']
  size = shapes[f'{prefix}0.self_attn.q_norm.weight'][0]
  return _upstream.VisionEncoder(
      d_model=width,
      num_layers=num_layers,
      num_heads=width // size,
      ffw_hidden=shapes[f'{prefix}0.mlp.gate_proj.linear.weight'][0],
      patch_size=math.isqrt(patch // 3),
  )


def _audio(shapes: Shapes) -> _upstream.ConformerConfig | None:
  prefix = 'audio_tower.layers.'
  if not (num_layers := _num_layers(shapes, prefix)):
    return None
  out, width = shapes['audio_tower.output_proj.weight']
  size = shapes[f'{prefix}0.self_attn.per_dim_scale'][0]
  return _upstream.ConformerConfig(
      num_layers=num_layers,
      model_dims=width,
      lm_model_dims=out,
      atten_num_heads=width // size,
  )
