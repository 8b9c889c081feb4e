"""The table: every adaptable linear of a Gemma 4 model, one projection a row.

Gemma packs several projections in one tensor (`kv_einsum` holds k and v,
`gating_einsum` gate and up). A row is a logical projection, as in Hugging Face
and PEFT: an adapter there means the same here. Code that needs Gemma 4's names
reads rows.
"""

from collections.abc import Iterator
import dataclasses

from gemma4_lora.gemma4 import _rows
from gemma4_lora.gemma4 import _tower_linears
from gemma4_lora.gemma4 import _upstream

Linear = _rows.Linear

# Width of a head.
_HEAD = 'head_dim or global_key_size'


def linears(config: _upstream.TransformerConfig) -> tuple[Linear, ...]:
  """Returns the table of a model: the text tower's rows, then the others'."""
  return (
      *_text_linears(config),
      *_tower_linears.vision(config),
      *_tower_linears.audio(config),
  )


def _text_linears(config: _upstream.TransformerConfig) -> tuple[Linear, ...]:
  """Returns the rows of the text tower, in the order of the forward pass."""
  rows = []
  if config.per_layer_input_dim:
    rows.append(
        Linear(
            layer=None,
            projection='per_layer_model_projection',
            group='per_layer_inputs',
            path='embedder.per_layer_model_projection.w',
            shape=(
                config.embed_dim,
                config.num_layers,
                config.per_layer_input_dim,
            ),
            axes=('embed_dim', 'attention_types', 'per_layer_input_dim'),
            in_axes=(0,),
            out_axes=(1, 2),
            hf_name='per_layer_model_projection',
        )
    )
  for layer in range(config.num_layers):
    attention = 'global' if _upstream.is_global(config, layer) else 'local'
    for row in _layer(config, layer):
      rows.append(dataclasses.replace(row, attention=attention))
  return tuple(rows)


def _layer(config: _upstream.TransformerConfig, layer: int) -> Iterator[Linear]:
  """The rows of one layer."""
  yield from _attention(config, layer)
  if config.enable_moe:
    yield from _mlp(config, layer, scope='mlp2')
    yield from _experts(config, layer)
  else:
    yield from _mlp(config, layer, scope='mlp')
  if config.per_layer_input_dim:
    yield from _per_layer_inputs(config, layer)


def _attention(
    config: _upstream.TransformerConfig, layer: int
) -> Iterator[Linear]:
  """q, k, v and o. Where k = v, `k` stands for both and there is no `v`."""
  width = config.embed_dim
  heads = config.num_heads
  kv_heads = _upstream.num_kv_heads(config, layer)
  size = _upstream.key_size(config, layer)
  live = not _upstream.shares_kv(config)[layer]
  scope = f'layer_{layer}.attn'
  hf = f'layers.{layer}.self_attn'
  # N: heads, K: key and value heads, D: width, H: width of a head.
  yield Linear(
      layer=layer,
      projection='q',
      group='attention',
      path=f'{scope}.q_einsum.w',
      shape=(heads, width, size),  # NDH
      axes=('num_heads', 'embed_dim', _HEAD),
      in_axes=(1,),
      out_axes=(0, 2),
      hf_name=f'{hf}.q_proj',
  )
  if _upstream.k_is_v(config, layer):
    yield Linear(
        layer=layer,
        projection='k',
        group='attention',
        path=f'{scope}.k_einsum.w',
        shape=(kv_heads, width, size),  # KDH
        axes=('num_global_kv_heads', 'embed_dim', _HEAD),
        in_axes=(1,),
        out_axes=(0, 2),
        live=live,
        hf_name=f'{hf}.k_proj',
    )
  else:
    for slot, projection in enumerate(('k', 'v')):
      yield Linear(
          layer=layer,
          projection=projection,
          group='attention',
          path=f'{scope}.kv_einsum.w',
          shape=(2, kv_heads, width, size),  # 2KDH
          axes=(None, 'num_kv_heads', 'embed_dim', _HEAD),
          slot_axis=0,
          slot=slot,
          in_axes=(2,),
          out_axes=(1, 3),
          live=live,
          hf_name=f'{hf}.{projection}_proj',
      )
  yield Linear(
      layer=layer,
      projection='o',
      group='attention',
      path=f'{scope}.attn_vec_einsum.w',
      shape=(heads, size, width),  # NHD
      axes=('num_heads', _HEAD, 'embed_dim'),
      in_axes=(0, 1),
      out_axes=(2,),
      hf_name=f'{hf}.o_proj',
  )


def _mlp(
    config: _upstream.TransformerConfig, layer: int, *, scope: str
) -> Iterator[Linear]:
  """gate, up and down of the dense MLP (`mlp2` beside experts)."""
  width = config.embed_dim
  hidden = _upstream.mlp_width(config, layer)
  field = 'moe_dense_hidden_dim' if config.enable_moe else 'hidden_dim'
  for slot, projection in enumerate(('gate', 'up')):
    yield Linear(
        layer=layer,
        projection=projection,
        group='mlp',
        path=f'layer_{layer}.{scope}.gating_einsum',
        shape=(2, hidden, width),
        axes=(None, field, 'embed_dim'),
        own_scopes=0,
        slot_axis=0,
        slot=slot,
        in_axes=(2,),
        out_axes=(1,),
        hf_name=f'layers.{layer}.mlp.{projection}_proj',
    )
  yield Linear(
      layer=layer,
      projection='down',
      group='mlp',
      path=f'layer_{layer}.{scope}.linear',
      shape=(hidden, width),
      axes=(field, 'embed_dim'),
      own_scopes=0,
      in_axes=(0,),
      out_axes=(1,),
      hf_name=f'layers.{layer}.mlp.down_proj',
  )


def _experts(
    config: _upstream.TransformerConfig, layer: int
) -> Iterator[Linear]:
  """The router, and gate, up and down of the routed experts."""
  width = config.embed_dim
  hidden = config.expert_dim
  experts = config.num_experts
  scope = f'layer_{layer}.mlp'
  yield Linear(
      layer=layer,
      projection='router',
      group='router',
      path=f'{scope}.router_logits.w',
      shape=(width, experts),
      axes=('embed_dim', 'num_experts'),
      in_axes=(0,),
      out_axes=(1,),
      hf_name=f'layers.{layer}.router.proj',
  )
  for slot, projection in enumerate(('expert_gate', 'expert_up')):
    yield Linear(
        layer=layer,
        projection=projection,
        group='experts',
        path=f'{scope}.gating_einsum.w',
        shape=(experts, 2, hidden, width),
        axes=('num_experts', None, 'expert_dim', 'embed_dim'),
        batch_axes=(0,),
        slot_axis=1,
        slot=slot,
        in_axes=(3,),
        out_axes=(2,),
        hf_name=f'layers.{layer}.experts.gate_up_proj',
    )
  yield Linear(
      layer=layer,
      projection='expert_down',
      group='experts',
      path=f'{scope}.linear.w',
      shape=(experts, hidden, width),
      axes=('num_experts', 'expert_dim', 'embed_dim'),
      batch_axes=(0,),
      in_axes=(1,),
      out_axes=(2,),
      hf_name=f'layers.{layer}.experts.down_proj',
  )


def _per_layer_inputs(
    config: _upstream.TransformerConfig, layer: int
) -> Iterator[Linear]:
  """The two projections that mix the per-layer input into the stream."""
  width, size = config.embed_dim, config.per_layer_input_dim
  fields = ('embed_dim', 'per_layer_input_dim')
  for projection, shape, axes in (
      ('per_layer_input_gate', (width, size), fields),
      ('per_layer_projection', (size, width), fields[::-1]),
  ):
    yield Linear(
        layer=layer,
        projection=projection,
        group='per_layer_inputs',
        path=f'layer_{layer}.{projection}.w',
        shape=shape,
        axes=axes,
        in_axes=(0,),
        out_axes=(1,),
        hf_name=f'layers.{layer}.{projection}',
    )
