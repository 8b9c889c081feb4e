"""The table: every adaptable linear of a Gemma 4 model, one projection a row.

Gemma packs several projections in one tensor (`kv_einsum` holds k and v,
`gating_einsum` gate and up). A row is a logical projection, as in Hugging Face
and PEFT: what it adapts there is what it adapts here. Whatever needs to know
Gemma 4's names reads rows.
"""

from collections.abc import Iterator
import dataclasses
import math

from gemma4_lora import _gemma4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear:
  """One projection of one layer.

  Example: `v` of a local layer of E2B, whose weight lies in `kv_einsum`:

  ```python
  Linear(
      tower='text', layer=4, projection='v', group='attention',
      path='layer_4.attn.kv_einsum.w', shape=(2, 1, 1536, 256),
      slot_axis=0, slot=1, in_axes=(2,), out_axes=(1, 3),
      hf_name='layers.4.self_attn.v_proj',
  )
  ```

  Attributes:
    tower: `'text'`.
    layer: Layer number, None for what stands outside the layers.
    projection: Logical name: `'q'`, `'gate'`, ...
    group: `'attention'`, `'mlp'`, `'per_layer_inputs'`, `'experts'` or
      `'router'`.
    path: Dotted path of the base weight in `params`.
    shape: Shape of the whole base weight.
    in_axes: Axes of the base weight that the input is contracted over.
    out_axes: Axes of the base weight that the output gains.
    batch_axes: Axes along which each index has a linear of its own (experts).
    slot_axis: Axis of the base weight along which projections are packed.
    slot: Index of this projection along `slot_axis`.
    attention: `'local'` or `'global'`: the attention of its layer, None outside
      the text tower's layers.
    live: False where the model never uses the result.
    hf_name: Module name within Hugging Face's language model, whose weight is
      `(prod(out), prod(in))`; the two expert tensors name the parameter.
  """

  tower: str = 'text'
  layer: int | None
  projection: str
  group: str
  path: str
  shape: tuple[int, ...]
  in_axes: tuple[int, ...]
  out_axes: tuple[int, ...]
  batch_axes: tuple[int, ...] = ()
  slot_axis: int | None = None
  slot: int | None = None
  attention: str | None = None
  live: bool = True
  hf_name: str

  @property
  def module_path(self) -> str:
    """Dotted path under which the LoRA leaves stand: the weight's own scope.

    `layer_0.attn.q_einsum.w` -> `layer_0.attn.q_einsum`, but
    `layer_0.mlp.linear` -> `layer_0.mlp`: the MLP's linears are bare arrays.
    """
    return self.path.rpartition('.')[0]

  @property
  def lora_path(self) -> str:
    """Dotted path of the `{'a': ..., 'b': ...}` that adapts this projection."""
    return f'{self.module_path}.lora.{self.projection}'

  @property
  def name(self) -> str:
    """Short unique name: `layer_4.attn.v`, `layer_0.mlp.gate`."""
    scope = [s for s in self.module_path.split('.') if s not in _WEIGHT_SCOPES]
    if scope[-1:] != [self.projection]:
      scope.append(self.projection)
    return '.'.join(scope)

  @property
  def in_shape(self) -> tuple[int, ...]:
    return tuple(self.shape[i] for i in self.in_axes)

  @property
  def out_shape(self) -> tuple[int, ...]:
    return tuple(self.shape[i] for i in self.out_axes)

  @property
  def batch_shape(self) -> tuple[int, ...]:
    return tuple(self.shape[i] for i in self.batch_axes)

  def lora_shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of A (`*batch *in rank`) and B (`*batch rank *out`)."""
    return (
        (*self.batch_shape, *self.in_shape, rank),
        (*self.batch_shape, rank, *self.out_shape),
    )

  def num_lora_params(self, rank: int) -> int:
    return sum(math.prod(s) for s in self.lora_shapes(rank))


# Scopes that hold one weight and say nothing that the projection does not.
_WEIGHT_SCOPES = frozenset(
    {
        'q_einsum',
        'k_einsum',
        'kv_einsum',
        'attn_vec_einsum',
        'gating_einsum',
        'linear',
        'router_logits',
    }
)


def linears(config: _gemma4.TransformerConfig) -> tuple[Linear, ...]:
  """Returns the table of a model."""
  return _text_linears(config)


def _text_linears(config: _gemma4.TransformerConfig) -> tuple[Linear, ...]:
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
            in_axes=(0,),
            out_axes=(1, 2),
            hf_name='per_layer_model_projection',
        )
    )
  for layer in range(config.num_layers):
    attention = 'global' if _gemma4.is_global(config, layer) else 'local'
    for row in _layer(config, layer):
      rows.append(dataclasses.replace(row, attention=attention))
  return tuple(rows)


def _layer(config: _gemma4.TransformerConfig, layer: int) -> Iterator[Linear]:
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
    config: _gemma4.TransformerConfig, layer: int
) -> Iterator[Linear]:
  """q, k, v and o. Where k = v, `k` stands for both and there is no `v`."""
  width = config.embed_dim
  heads = config.num_heads
  kv_heads = _gemma4.num_kv_heads(config, layer)
  size = _gemma4.key_size(config, layer)
  live = not _gemma4.shares_kv(config)[layer]
  scope = f'layer_{layer}.attn'
  hf = f'layers.{layer}.self_attn'
  # N: heads, K: key and value heads, D: width, H: width of a head.
  yield Linear(
      layer=layer,
      projection='q',
      group='attention',
      path=f'{scope}.q_einsum.w',
      shape=(heads, width, size),  # NDH
      in_axes=(1,),
      out_axes=(0, 2),
      hf_name=f'{hf}.q_proj',
  )
  if _gemma4.k_is_v(config, layer):
    yield Linear(
        layer=layer,
        projection='k',
        group='attention',
        path=f'{scope}.k_einsum.w',
        shape=(kv_heads, width, size),  # KDH
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
      in_axes=(0, 1),
      out_axes=(2,),
      hf_name=f'{hf}.o_proj',
  )


def _mlp(
    config: _gemma4.TransformerConfig, layer: int, *, scope: str
) -> Iterator[Linear]:
  """gate, up and down of the dense MLP (`mlp2` beside experts)."""
  width = config.embed_dim
  hidden = _gemma4.mlp_width(config, layer)
  for slot, projection in enumerate(('gate', 'up')):
    yield Linear(
        layer=layer,
        projection=projection,
        group='mlp',
        path=f'layer_{layer}.{scope}.gating_einsum',
        shape=(2, hidden, width),
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
      in_axes=(0,),
      out_axes=(1,),
      hf_name=f'layers.{layer}.mlp.down_proj',
  )


def _experts(config: _gemma4.TransformerConfig, layer: int) -> Iterator[Linear]:
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
      batch_axes=(0,),
      in_axes=(1,),
      out_axes=(2,),
      hf_name=f'layers.{layer}.experts.down_proj',
  )


def _per_layer_inputs(
    config: _gemma4.TransformerConfig, layer: int
) -> Iterator[Linear]:
  """The two projections that mix the per-layer input into the stream."""
  width, size = config.embed_dim, config.per_layer_input_dim
  for projection, shape in {
      'per_layer_input_gate': (width, size),
      'per_layer_projection': (size, width),
  }.items():
    yield Linear(
        layer=layer,
        projection=projection,
        group='per_layer_inputs',
        path=f'layer_{layer}.{projection}.w',
        shape=shape,
        in_axes=(0,),
        out_axes=(1,),
        hf_name=f'layers.{layer}.{projection}',
    )
