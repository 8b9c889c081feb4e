"""Finds the Gemma 4 of a file of transformers, from the shapes of its tensors.

A restore sees a state and a file, but no config. It needs the config for the
table of linears, which depends on sizes that the file has.
"""

from collections.abc import Mapping
import dataclasses
import functools
import math
from typing import Any

from gemma4_lora.gemma4 import _sizes
from gemma4_lora.gemma4 import _unified_vision
from gemma4_lora.gemma4 import _upstream
from gemma4_lora.host.files import _regular

# Defaults for towers that lack the tensors for these sizes: those of all Gemma
# 4.
_PATCH = 16

Shapes = Mapping[str, tuple[int, ...]]


def config(shapes: Shapes) -> _upstream.TransformerConfig:
  """Returns a config with the linears of the file.

  Each size is read from any tensor that has it, so that a file may lack one.
  Settings that linears do not show are those of E2B. KV-shared layers are not
  known: their MLPs may be wider than in the config.

  Args:
    shapes: Shapes by name: below the language model, or for towers below the
      model around it.

  Raises:
    ValueError: It is not Gemma 4.
  """
  num_layers = _num_layers(shapes, 'layers.')
  sizes = _head_sizes(shapes, num_layers)
  if not any(sizes) or not _first(shapes, num_layers, ('layer_scalar', None)):
    raise ValueError(
        'these are no weights of a Gemma 4: no layer has'
        ' layers.N.layer_scalar and a norm of its queries.'
    )
  defaults = _sizes.SIZES[0].cls.config
  sizes = [size or min(filter(None, sizes)) for size in sizes]
  per_layer = _at(
      shapes, 'per_layer_model_projection.weight', 0
  ) // num_layers or _at(shapes, 'per_layer_projection_norm.weight', 0)
  shared_kv = [_is_k_and_v(shapes, i) for i in range(num_layers)]
  if len(set(sizes)) > 1:
    is_global = [size == max(sizes) for size in sizes]
    # Not if only one layer lacks its values.
    has_k = [
        shared_kv[i]
        for i in range(num_layers)
        if is_global[i] and f'layers.{i}.self_attn.k_proj.weight' in shapes
    ]
    # Models with per-layer inputs keep k and v apart. With only one global
    # layer of its own keys, nothing else shows it.
    k_eq_v = bool(has_k) and all(has_k) and not per_layer
  else:
    is_global, k_eq_v = shared_kv, any(shared_kv)
  first = functools.partial(_first, shapes, num_layers)
  gate_up, down = 'experts.gate_up_proj', 'experts.down_proj'
  hidden = first(
      ('mlp.gate_proj.weight', 0),
      ('mlp.up_proj.weight', 0),
      ('mlp.down_proj.weight', 1),
  )
  table = shapes.get('embed_tokens.weight', ())
  num_experts = first((gate_up, 0), (down, 0))
  return dataclasses.replace(
      defaults,
      num_embed=table[0] if table else defaults.num_embed,
      embed_dim=(table[1] if len(table) > 1 else 0)
      or _at(shapes, 'norm.weight', 0)
      or first(('input_layernorm.weight', 0), ('self_attn.q_proj.weight', 1))
      or defaults.embed_dim,
      hidden_dim=hidden or defaults.hidden_dim,
      override_kv_shared_ffw_hidden=None,
      kv_cache_sharing_config=None,
      attention_types=_upstream.attention_types(is_global),
      num_heads=_num_heads(shapes, num_layers) or defaults.num_heads,
      head_dim=min(sizes),
      global_key_size=max(sizes),
      num_kv_heads=_kv_heads(shapes, is_global, sizes, False) or 1,
      num_global_kv_heads=_kv_heads(shapes, is_global, sizes, True),
      k_eq_v_global=k_eq_v,
      per_layer_input_dim=per_layer,
      enable_moe=bool(num_experts),
      num_experts=num_experts,
      expert_dim=first((gate_up, 1)) // 2 or first((down, 2)),
      moe_dense_hidden_dim=hidden or defaults.hidden_dim,
      vision_encoder=_vision(shapes),
      audio_encoder=_audio(shapes),
  )


def _num_layers(shapes: Shapes, prefix: str) -> int:
  """Returns one more than the highest number of a layer.

  Raises:
    ValueError: There are fewer tensors than that.
  """
  most = 0
  for name in shapes:
    if not name.startswith(prefix):
      continue
    number = name.removeprefix(prefix).partition('.')[0]
    if not number.isascii() or not number.isdecimal():
      continue
    if len(number) > 9 or int(number) >= len(shapes):
      raise ValueError(
          f'{_regular.shown(name)} is of layer {_regular.shown(number)}, and'
          f' there are {len(shapes)} tensors in all.'
      )
    most = max(most, 1 + int(number))
  return most


def _at(shapes: Shapes, name: str, axis: int | None) -> int:
  """Returns the size of an axis; of None, 1; 0 if it is not there."""
  shape = shapes.get(name)
  if shape is None:
    return 0
  if axis is None:
    return 1
  return shape[axis] if axis < len(shape) else 0


def _first(
    shapes: Shapes,
    num_layers: int,
    *names: tuple[str, int | None],
    prefix: str = 'layers.',
) -> int:
  """Returns the size in the first layer that has one of the tensors."""
  for i in range(num_layers):
    for name, axis in names:
      if size := _at(shapes, f'{prefix}{i}.{name}', axis):
        return size
  return 0


def _num_heads(shapes: Shapes, num_layers: int) -> int:
  """Number of heads, from a layer with both a projection and a norm."""
  for i in range(num_layers):
    prefix = f'layers.{i}.self_attn'
    size = _at(shapes, f'{prefix}.q_norm.weight', 0)
    total = _at(shapes, f'{prefix}.q_proj.weight', 0)
    if size and total:
      return total // size
  return 0


def _head_sizes(shapes: Shapes, num_layers: int) -> list[int]:
  """Width of a head of each layer, 0 if unknown."""
  num_heads = _num_heads(shapes, num_layers)
  sizes = []
  for i in range(num_layers):
    prefix = f'layers.{i}.self_attn'
    total = _at(shapes, f'{prefix}.q_proj.weight', 0)
    total = total or _at(shapes, f'{prefix}.o_proj.weight', 1)
    sizes.append(
        _at(shapes, f'{prefix}.q_norm.weight', 0)
        or _at(shapes, f'{prefix}.k_norm.weight', 0)
        or (total // num_heads if num_heads else 0)
    )
  return sizes


def _is_k_and_v(shapes: Shapes, layer: int) -> bool:
  """Whether one projection gives both keys and values."""
  prefix = f'layers.{layer}.self_attn'
  return (
      f'{prefix}.k_proj.weight' in shapes
      and f'{prefix}.v_proj.weight' not in shapes
  )


def _kv_heads(
    shapes: Shapes, is_global: list[bool], sizes: list[int], wanted: bool
) -> int | None:
  """Number of key and value heads of global or local layers."""
  for i, kind in enumerate(is_global):
    prefix = f'layers.{i}.self_attn'
    total = _at(shapes, f'{prefix}.k_proj.weight', 0)
    total = total or _at(shapes, f'{prefix}.v_proj.weight', 0)
    if kind == wanted and total >= sizes[i]:
      return total // sizes[i]
  return None


def _vision(shapes: Shapes) -> Any:
  if unified := _unified(shapes):
    return unified
  prefix = 'vision_tower.encoder.layers.'
  if not (num_layers := _num_layers(shapes, prefix)):
    return None
  first = functools.partial(_first, shapes, num_layers, prefix=prefix)
  name = 'vision_tower.patch_embedder.input_proj.weight'
  width = _at(shapes, name, 0) or first(
      ('input_layernorm.weight', 0), ('self_attn.q_proj.linear.weight', 1)
  )
  size = first(('self_attn.q_norm.weight', 0), ('self_attn.k_norm.weight', 0))
  hidden = first(
      ('mlp.gate_proj.linear.weight', 0),
      ('mlp.up_proj.linear.weight', 0),
      ('mlp.down_proj.linear.weight', 1),
  )
  if not (width and size and hidden):
    raise ValueError(
        'it has layers of a vision tower, and nothing that says their sizes.'
    )
  patch = math.isqrt(_at(shapes, name, 1) // 3)
  return _upstream.VisionEncoder(
      d_model=width,
      num_layers=num_layers,
      num_heads=width // size,
      ffw_hidden=hidden,
      patch_size=patch or _PATCH,
  )


def _unified(shapes: Shapes) -> _unified_vision.UnifiedVision | None:
  """What 12B has in place of a vision tower."""
  defaults = _unified_vision.UnifiedVision()
  width, *pixels = shapes.get('embed_vision.patch_dense.weight', (0,))
  if not width:
    return None
  side = math.isqrt((pixels or [0])[0] // 3)
  return defaults.clone(
      d_model=width,
      patch_size=side // defaults.pooling_kernel_size or defaults.patch_size,
      num_positions=_at(shapes, 'embed_vision.pos_embedding', 0)
      or defaults.num_positions,
  )


def _audio(shapes: Shapes) -> _upstream.ConformerConfig | None:
  prefix = 'audio_tower.layers.'
  if not (num_layers := _num_layers(shapes, prefix)):
    return None
  first = functools.partial(_first, shapes, num_layers, prefix=prefix)
  name = 'audio_tower.output_proj.weight'
  width = _at(shapes, name, 1) or first(
      ('self_attn.q_proj.linear.weight', 1),
      ('self_attn.k_proj.linear.weight', 1),
  )
  size = first(('self_attn.per_dim_scale', 0))
  if not (width and size):
    raise ValueError(
        'it has layers of an audio tower, and nothing that says their sizes.'
    )
  return _upstream.ConformerConfig(
      num_layers=num_layers,
      model_dims=width,
      lm_model_dims=_at(shapes, name, 0) or width,
      atten_num_heads=width // size,
  )
