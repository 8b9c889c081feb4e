"""The rows of the vision and audio towers, and of their projections.

A model with `text_only=False` has them. The vision tower runs its layers by
`nn.scan`, so one weight has all of them along its first axis. The layers of the
audio tower (a conformer) are separate modules. Convolutions are not linears,
and have no row.
"""

from collections.abc import Iterator

from gemma4_lora.gemma4 import _names
from gemma4_lora.gemma4 import _rows
from gemma4_lora.gemma4 import _unified_vision
from gemma4_lora.gemma4 import _upstream

Linear = _rows.Linear

# Fields of the config that decide all sizes of a tower.
_VISION, _AUDIO = 'vision_encoder', 'audio_encoder'


def vision(config: _upstream.TransformerConfig) -> Iterator[Linear]:
  """The rows of the vision tower, in the order of the forward pass."""
  tower = config.vision_encoder
  if tower is None:
    return
  projection = 'embed_vision.embedding_projection'
  if isinstance(tower, _unified_vision.UnifiedVision):
    side = tower.patch_size * tower.pooling_kernel_size
    yield _patch_embedding(
        tower, side, 'patch_dense.kernel', 'embed_vision.patch_dense'
    )
    projection = 'embed_vision.multimodal_embedder.embedding_projection'
  else:
    yield _patch_embedding(
        tower,
        tower.patch_size,
        'entry.input_projection.w',
        'vision_tower.patch_embedder.input_proj',
    )
    yield from _vision_layers(tower)
  yield Linear(
      tower='vision',
      layer=None,
      projection='mm_input_projection',
      group='multimodal_projections',
      path='embedder.mm_input_projection.w',
      shape=(tower.d_model, config.embed_dim),
      axes=(_VISION, 'embed_dim'),
      in_axes=(0,),
      out_axes=(1,),
      hf_name=projection,
  )


def _patch_embedding(tower, side: int, path: str, hf_name: str) -> Linear:
  """The projection of squares of `side` pixels."""
  return Linear(
      tower='vision',
      layer=None,
      projection='patch_embedding',
      group='patch_embedding',
      path=f'vision_encoder.{path}',
      shape=(3 * side**2, tower.d_model),
      axes=(_VISION, _VISION),
      in_axes=(0,),
      out_axes=(1,),
      hf_name=hf_name,
  )


def _vision_layers(tower: _upstream.VisionEncoder) -> Iterator[Linear]:
  """q, k, v, o, gate, up and down, each in all layers at once."""
  layers, heads, width = tower.num_layers, tower.num_heads, tower.d_model
  size = width // heads

  def row(projection, group, module, shape, **kwargs):
    hf = {'attention': 'self_attn', 'mlp': 'mlp'}[group]
    return Linear(
        tower='vision',
        layer=None,
        projection=projection,
        group=group,
        path=f'{_names.VISION_BLOCK}.{module}.w',
        shape=shape,
        axes=(_VISION,) * len(shape),
        batch_axes=(0,),
        stacked=True,
        hf_name=(
            f'vision_tower.encoder.layers.*.{hf}.{projection}_proj.linear'
        ),
        **kwargs,
    )

  # L: layers, N: heads, D: width, H: width of a head, F: hidden width.
  yield row(
      'q',
      'attention',
      'attn.q_einsum',
      (layers, heads, width, size),  # LNDH
      in_axes=(2,),
      out_axes=(1, 3),
  )
  for slot, projection in enumerate(('k', 'v')):
    yield row(
        projection,
        'attention',
        'attn.kv_einsum',
        (layers, 2, heads, width, size),  # L2NDH
        slot_axis=1,
        slot=slot,
        in_axes=(3,),
        out_axes=(2, 4),
    )
  yield row(
      'o',
      'attention',
      'attn.attn_vec_einsum',
      (layers, heads, size, width),  # LNHD
      in_axes=(1, 2),
      out_axes=(3,),
  )
  for slot, projection in enumerate(('gate', 'up')):
    yield row(
        projection,
        'mlp',
        'mlp.gating_einsum',
        (layers, 2, tower.ffw_hidden, width),  # L2FD
        slot_axis=1,
        slot=slot,
        in_axes=(3,),
        out_axes=(2,),
    )
  yield row(
      'down',
      'mlp',
      'mlp.linear',
      (layers, tower.ffw_hidden, width),  # LFD
      in_axes=(1,),
      out_axes=(2,),
  )


def audio(config: _upstream.TransformerConfig) -> Iterator[Linear]:
  """The rows of the audio tower, in the order of the forward pass."""
  tower = config.audio_encoder
  if tower is None:
    return
  yield Linear(
      tower='audio',
      layer=None,
      projection='subsampling',
      group='subsampling',
      path='audio_encoder.feature.input_proj.kernel',
      shape=(*_upstream.AUDIO_SUBSAMPLED, tower.model_dims),
      axes=(_AUDIO,) * 3,
      in_axes=(0, 1),
      out_axes=(2,),
      hf_name='audio_tower.subsample_conv_projection.input_proj_linear',
  )
  for layer in range(tower.num_layers):
    yield from _audio_layer(tower, layer)
  yield Linear(
      tower='audio',
      layer=None,
      projection='output_projection',
      group='output_projection',
      path='audio_encoder.output_projection.kernel',
      shape=(tower.model_dims, tower.lm_model_dims),
      axes=(_AUDIO, _AUDIO),
      in_axes=(0,),
      out_axes=(1,),
      hf_name='audio_tower.output_proj',
  )
  yield Linear(
      tower='audio',
      layer=None,
      projection='audio_input_projection',
      group='multimodal_projections',
      path='embedder.audio_input_projection.w',
      shape=(tower.lm_model_dims, config.embed_dim),
      axes=(_AUDIO, 'embed_dim'),
      in_axes=(0,),
      out_axes=(1,),
      hf_name='embed_audio.embedding_projection',
  )


def _audio_layer(
    tower: _upstream.ConformerConfig, layer: int
) -> Iterator[Linear]:
  """Feed-forward, attention, convolution and feed-forward of one layer.

  Both feed-forwards have `up` and `down`. `relative_position` projects the
  sinusoids of the attention's relative positions, not activations: no kind
  includes it.
  """
  width, heads = tower.model_dims, tower.atten_num_heads
  size = width // heads

  def row(
      projection,
      group,
      module,
      shape,
      hf,
      *,
      in_axes=(0,),
      out_axes=(1,),
      own_scopes=1,
  ):
    return Linear(
        tower='audio',
        layer=layer,
        projection=projection,
        group=group,
        path=f'audio_encoder.conformer/stacked_layers_{layer}.{module}.kernel',
        shape=shape,
        axes=(_AUDIO,) * len(shape),
        hf_name=f'audio_tower.layers.{layer}.{hf}',
        in_axes=in_axes,
        out_axes=out_axes,
        own_scopes=own_scopes,
    )

  def feed_forward(module, hf):
    for projection, name, hf_name, shape in (
        ('up', 'ffn_layer1', 'ffw_layer_1', (width, 4 * width)),
        ('down', 'ffn_layer2', 'ffw_layer_2', (4 * width, width)),
    ):
      yield row(
          projection, 'mlp', f'{module}.{name}', shape, f'{hf}.{hf_name}.linear'
      )

  yield from feed_forward('fflayer_start', 'feed_forward1')
  for projection, name in (('q', 'query'), ('k', 'key'), ('v', 'value')):
    yield row(
        projection,
        'attention',
        f'trans_atten.self_atten.{name}',
        (width, width),
        f'self_attn.{projection}_proj.linear',
    )
  yield row(
      'relative_position',
      'relative_position',
      'trans_atten.self_atten.relative_position_embedding.pos_proj',
      (width, heads, size),
      'self_attn.relative_k_proj',
      out_axes=(1, 2),
      own_scopes=2,
  )
  yield row(
      'o',
      'attention',
      'trans_atten.post',
      (heads, size, width),
      'self_attn.post.linear',
      in_axes=(0, 1),
      out_axes=(2,),
  )
  for projection in ('linear_start', 'linear_end'):
    yield row(
        projection,
        'convolution',
        f'lconv.{projection}',
        (width, 2 * width if projection == 'linear_start' else width),
        f'lconv1d.{projection}.linear',
    )
  yield from feed_forward('fflayer_end', 'feed_forward2')
