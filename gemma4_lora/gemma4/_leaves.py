"""The table of the leaves that are no linears: norms, embeddings, scalars.

LoRA cannot adapt them, but they can be trained in full. With `_linears` they
are all that a Gemma 4 model has but for clip bounds, which stay frozen.
"""

from collections.abc import Iterator
import dataclasses
import itertools

from gemma4_lora.gemma4 import _rows
from gemma4_lora.gemma4 import _upstream


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leaf(_rows.Row):
  """One leaf. `group` is `'norms'`, `'embeddings'`, `'scalars'` or `'others'`.

  `hf_name` is a module that has nothing but a `weight` (`norm`), or a parameter
  (`layers.0.layer_scalar`). It is empty where we know none.

  Attributes:
    is_hf_module: Which of the two.
  """

  is_hf_module: bool

  @property
  def name(self) -> str:
    """Short unique name: `layer_4.pre_attention_norm`, `final_norm`."""
    return self.path.removesuffix('.scale').removesuffix('.kernel')

  @property
  def hf_tensors(self) -> tuple[str, ...]:
    """Hugging Face's tensors: one, or one per layer of a stacked leaf."""
    if not self.hf_name:
      return ()
    suffix = '.weight' if self.is_hf_module else ''
    return tuple(f'{name}{suffix}' for name in self.hf_names)


def leaves(config: _upstream.TransformerConfig) -> tuple[Leaf, ...]:
  """Returns the table of a model: the text tower's leaves, then the others'."""
  return (*_text(config), *_vision(config), *_audio(config))


def _text(config: _upstream.TransformerConfig) -> Iterator[Leaf]:
  width, vocab = config.embed_dim, config.num_embed
  per_layer = config.per_layer_input_dim
  yield _leaf('embedder.input_embedding', (vocab, width), 'embed_tokens')
  if per_layer:
    yield _leaf(
        'embedder.per_layer_embeddings',
        (vocab, config.num_layers, per_layer),
        'embed_tokens_per_layer',
    )
    yield _leaf(
        'embedder.per_layer_projection_norm.scale',
        (per_layer,),
        'per_layer_projection_norm',
    )
  for layer in range(config.num_layers):
    yield from _text_layer(config, layer)
  yield _leaf('final_norm.scale', (width,), 'norm')


def _text_layer(
    config: _upstream.TransformerConfig, layer: int
) -> Iterator[Leaf]:
  width, size = config.embed_dim, _upstream.key_size(config, layer)
  shares_kv = _upstream.shares_kv(config)[layer]
  attention = 'global' if _upstream.is_global(config, layer) else 'local'

  def leaf(path, hf_name, shape=(width,), *, live=True):
    return dataclasses.replace(
        _leaf(f'layer_{layer}.{path}', shape, f'layers.{layer}.{hf_name}'),
        layer=layer,
        attention=attention,
        live=live,
    )

  def norm(name, hf_name):
    return leaf(f'{name}.scale', f'{hf_name}')

  yield norm('pre_attention_norm', 'input_layernorm')
  yield leaf('attn.query_norm.scale', 'self_attn.q_norm', (size,))
  yield leaf(
      'attn.key_norm.scale',
      'self_attn.k_norm',
      (size,),
      live=not shares_kv,
  )
  yield norm('post_attention_norm', 'post_attention_layernorm')
  if config.enable_moe:
    yield norm('pre_ffw2_norm', 'pre_feedforward_layernorm')
    yield norm('post_ffw2_norm', 'post_feedforward_layernorm_1')
    yield norm('pre_ffw_norm', 'pre_feedforward_layernorm_2')
    yield leaf('mlp.router_scale', 'router.scale')
    yield leaf(
        'mlp.per_expert_scale',
        'router.per_expert_scale',
        (config.num_experts,),
    )
    yield norm('post_ffw1_norm', 'post_feedforward_layernorm_2')
  else:
    yield norm('pre_ffw_norm', 'pre_feedforward_layernorm')
  yield norm('post_ffw_norm', 'post_feedforward_layernorm')
  if config.per_layer_input_dim:
    yield norm('post_per_layer_input_norm', 'post_per_layer_input_norm')
  yield leaf('skip_scale', 'layer_scalar', (1,))


def _vision(config: _upstream.TransformerConfig) -> Iterator[Leaf]:
  tower = config.vision_encoder
  if tower is None:
    return
  width = tower.d_model

  def leaf(path, shape, hf_name, *, stacked=False):
    return dataclasses.replace(
        _leaf(f'vision_encoder.{path}', shape, f'vision_tower.{hf_name}'),
        tower='vision',
        stacked=stacked,
    )

  yield leaf(
      'entry.pos_emb',
      (*tower.pos_emb_shape_yx, width),
      'patch_embedder.position_embedding_table',
  )
  for name, hf_name, size in (
      ('pre_attention_norm', 'input_layernorm', width),
      ('attn.query_norm', 'self_attn.q_norm', width // tower.num_heads),
      ('attn.key_norm', 'self_attn.k_norm', width // tower.num_heads),
      ('post_attention_norm', 'post_attention_layernorm', width),
      ('pre_ffw_norm', 'pre_feedforward_layernorm', width),
      ('post_ffw_norm', 'post_feedforward_layernorm', width),
  ):
    yield leaf(
        f'transformer.stacked_layers.block.{name}.scale',
        (tower.num_layers, size),
        f'encoder.layers.*.{hf_name}',
        stacked=True,
    )
  if tower.standardize_embeddings:
    yield leaf('standardize.bias', (width,), 'std_bias')
    yield leaf('standardize.scale', (width,), 'std_scale')


def _audio(config: _upstream.TransformerConfig) -> Iterator[Leaf]:
  """Hugging Face's names are not known: no file of its own was at hand."""
  tower = config.audio_encoder
  if tower is None:
    return
  width = tower.model_dims

  def leaf(path, shape, *, layer=None):
    return dataclasses.replace(
        _leaf(f'audio_encoder.{path}', shape, ''), tower='audio', layer=layer
    )

  channels = _upstream.AUDIO_FILTERS
  for i, (fewer, more) in enumerate(itertools.pairwise((1, *channels))):
    yield leaf(f'feature.subsampling_{i}.kernel', (3, 3, fewer, more))
    yield leaf(f'feature.norm_{i}.scale', (more,))
  for layer in range(tower.num_layers):
    for path, shape in {
        'fflayer_start.pre_layer_norm.scale': (width,),
        'fflayer_start.post_layer_norm.scale': (width,),
        'trans_atten.pre_norm.scale': (width,),
        'trans_atten.self_atten.per_dim_scale': (
            width // tower.atten_num_heads,
        ),
        'trans_atten.post_norm.scale': (width,),
        'lconv.ln.scale': (width,),
        'lconv.depthwise_conv1d.kernel': (tower.conv_kernel_size, 1, width),
        'lconv.conv_norm.scale': (width,),
        'fflayer_end.pre_layer_norm.scale': (width,),
        'fflayer_end.post_layer_norm.scale': (width,),
        'final_ln.scale': (width,),
    }.items():
      yield leaf(f'conformer/stacked_layers_{layer}.{path}', shape, layer=layer)
  yield leaf('output_projection.bias', (tower.lm_model_dims,))


def _leaf(path: str, shape: tuple[int, ...], hf_name: str) -> Leaf:
  """Names and groups a leaf by its path."""
  *_, scope, last = ('', *path.split('.'))
  if last == 'scale' and 'standardize' not in scope:
    group, projection = 'norms', scope
  elif 'embedding' in last or last == 'pos_emb':
    group, projection = 'embeddings', last
  elif last.endswith('scale') and len(shape) == 1:
    group, projection = 'scalars', last
  else:
    group = 'others'
    projection = last if last in ('bias', 'scale') else scope
  return Leaf(
      layer=None,
      projection=projection,
      group=group,
      path=path,
      shape=shape,
      hf_name=hf_name,
      is_hf_module=group == 'norms' or path.startswith('embedder.'),
  )
