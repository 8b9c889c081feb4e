"""The table of leaves that are not linears: norms, embeddings, scalars.

LoRA cannot adapt them, but they can be trained in full. Together with
`_linears` it lists all leaves of a Gemma 4 model except clip bounds, which stay
frozen.
"""

from collections.abc import Iterator
import dataclasses

from gemma4_lora.gemma4 import _names
from gemma4_lora.gemma4 import _rows
from gemma4_lora.gemma4 import _tower_leaves
from gemma4_lora.gemma4 import _upstream

Leaf = _rows.Leaf

_WIDTH = ('embed_dim',)
_HEAD = ('head_dim or global_key_size',)


def leaves(config: _upstream.TransformerConfig) -> tuple[Leaf, ...]:
  """Returns the table of a model: the text tower's leaves, then the others'."""
  return (
      *_text(config),
      *_tower_leaves.vision(config),
      *_tower_leaves.audio(config),
  )


def _text(config: _upstream.TransformerConfig) -> Iterator[Leaf]:
  width, vocab = config.embed_dim, config.num_embed
  per_layer = config.per_layer_input_dim
  yield _table(
      _names.EMBEDDING, (vocab, width), ('num_embed', *_WIDTH), 'embed_tokens'
  )
  if per_layer:
    yield _table(
        _names.PER_LAYER_EMBEDDINGS,
        (vocab, config.num_layers, per_layer),
        ('num_embed', 'attention_types', 'per_layer_input_dim'),
        'embed_tokens_per_layer',
    )
    yield _norm(
        'embedder.per_layer_projection_norm',
        'per_layer_projection_norm',
        per_layer,
        ('per_layer_input_dim',),
    )
  for layer in range(config.num_layers):
    attention = 'global' if _upstream.is_global(config, layer) else 'local'
    for leaf in _layer(config, layer):
      yield dataclasses.replace(
          leaf,
          layer=layer,
          attention=attention,
          path=f'layer_{layer}.{leaf.path}',
          hf_name=f'layers.{layer}.{leaf.hf_name}',
      )
  yield _norm('final_norm', 'norm', width)


def _layer(config: _upstream.TransformerConfig, layer: int) -> Iterator[Leaf]:
  """The leaves of one layer, named below it."""
  width, size = config.embed_dim, _upstream.key_size(config, layer)
  yield _norm('pre_attention_norm', 'input_layernorm', width)
  yield _norm('attn.query_norm', 'self_attn.q_norm', size, _HEAD)
  yield dataclasses.replace(
      _norm('attn.key_norm', 'self_attn.k_norm', size, _HEAD),
      live=not _upstream.shares_kv(config)[layer],
  )
  yield _norm('post_attention_norm', 'post_attention_layernorm', width)
  if config.enable_moe:
    yield from _beside_experts(config)
  else:
    yield _norm('pre_ffw_norm', 'pre_feedforward_layernorm', width)
  yield _norm('post_ffw_norm', 'post_feedforward_layernorm', width)
  if config.per_layer_input_dim:
    name = 'post_per_layer_input_norm'
    yield _norm(name, name, width)
  yield _scalars('skip_scale', 'layer_scalar', 1, (None,))


def _beside_experts(config: _upstream.TransformerConfig) -> Iterator[Leaf]:
  """Norms around the dense MLP and the experts, and the router's scales."""
  width = config.embed_dim
  yield _norm('pre_ffw2_norm', 'pre_feedforward_layernorm', width)
  yield _norm('post_ffw2_norm', 'post_feedforward_layernorm_1', width)
  yield _norm('pre_ffw_norm', 'pre_feedforward_layernorm_2', width)
  yield _scalars('mlp.router_scale', 'router.scale', width, _WIDTH)
  yield _scalars(
      'mlp.per_expert_scale',
      'router.per_expert_scale',
      config.num_experts,
      ('num_experts',),
  )
  yield _norm('post_ffw1_norm', 'post_feedforward_layernorm_2', width)


def _table(
    path: str, shape: tuple[int, ...], axes: _rows.Axes, hf_name: str
) -> Leaf:
  return Leaf(
      layer=None,
      projection=path.rpartition('.')[2],
      group='embeddings',
      path=path,
      shape=shape,
      axes=axes,
      hf_name=hf_name,
      is_hf_module=True,
  )


def _norm(
    path: str, hf_name: str, size: int, axes: _rows.Axes = _WIDTH
) -> Leaf:
  return Leaf(
      layer=None,
      projection=path.rpartition('.')[2],
      group='norms',
      path=f'{path}.scale',
      shape=(size,),
      axes=axes,
      hf_name=hf_name,
      is_hf_module=True,
  )


def _scalars(path: str, hf_name: str, size: int, axes: _rows.Axes) -> Leaf:
  return Leaf(
      layer=None,
      projection=path.rpartition('.')[2],
      group='scalars',
      path=path,
      shape=(size,),
      axes=axes,
      hf_name=hf_name,
      is_hf_module=False,
  )
