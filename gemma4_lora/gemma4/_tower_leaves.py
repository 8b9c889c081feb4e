"""The leaves of the vision and audio towers that are not linears.

Names of transformers were read in its 5.24:
https://github.com/huggingface/transformers/blob/main/src/transformers/models/gemma4/modeling_gemma4.py
"""

from collections.abc import Iterator
import dataclasses
import itertools

from gemma4_lora.gemma4 import _names
from gemma4_lora.gemma4 import _rows
from gemma4_lora.gemma4 import _unified_vision
from gemma4_lora.gemma4 import _upstream

Leaf = _rows.Leaf


def vision(config: _upstream.TransformerConfig) -> Iterator[Leaf]:
  """Positions, norms of all layers at once, and the final standardisation."""
  tower = config.vision_encoder
  if tower is None:
    return
  if isinstance(tower, _unified_vision.UnifiedVision):
    yield from _unified(tower)
    return
  width = tower.d_model
  yield _leaf(
      'vision',
      _names.POSITIONS,
      'patch_embedder.position_embedding_table',
      (*tower.pos_emb_shape_yx, width),
      projection='pos_emb',
      group='embeddings',
  )
  yield from _vision_norms(tower)
  if tower.standardize_embeddings:
    for name in ('bias', 'scale'):
      yield _leaf(
          'vision',
          f'vision_encoder.standardize.{name}',
          f'std_{name}',
          (width,),
          projection=name,
          group='others',
      )


def _unified(tower: _unified_vision.UnifiedVision) -> Iterator[Leaf]:
  """Positions, three norms with their biases, and the bias of a linear."""
  width = tower.d_model
  pixels = 3 * (tower.patch_size * tower.pooling_kernel_size) ** 2

  def leaf(path, hf_name, shape, **kwargs):
    row = _leaf('vision', f'vision_encoder.{path}', hf_name, shape, **kwargs)
    return dataclasses.replace(row, hf_name=f'embed_vision.{hf_name}')

  yield leaf(
      'pos_embedding',
      'pos_embedding',
      (tower.num_positions, 2, width),
      projection='pos_emb',
      group='embeddings',
  )
  for name, size in (
      ('patch_ln1', pixels),
      ('patch_ln2', width),
      ('pos_norm', width),
  ):
    for ours, theirs in (('scale', 'weight'), ('bias', 'bias')):
      yield leaf(
          f'{name}.{ours}',
          f'{name}.{theirs}',
          (size,),
          projection=ours,
          group='others',
      )
  yield leaf(
      'patch_dense.bias',
      'patch_dense.bias',
      (width,),
      projection='bias',
      group='others',
  )


def _vision_norms(tower: _upstream.VisionEncoder) -> Iterator[Leaf]:
  width, size = tower.d_model, tower.d_model // tower.num_heads
  for name, hf_name, length in (
      ('pre_attention_norm', 'input_layernorm', width),
      ('attn.query_norm', 'self_attn.q_norm', size),
      ('attn.key_norm', 'self_attn.k_norm', size),
      ('post_attention_norm', 'post_attention_layernorm', width),
      ('pre_ffw_norm', 'pre_feedforward_layernorm', width),
      ('post_ffw_norm', 'post_feedforward_layernorm', width),
  ):
    yield _leaf(
        'vision',
        f'{_names.VISION_BLOCK}.{name}.scale',
        f'encoder.layers.*.{hf_name}',
        (tower.num_layers, length),
        projection=name.rpartition('.')[2],
        group='norms',
        stacked=True,
    )


def audio(config: _upstream.TransformerConfig) -> Iterator[Leaf]:
  """Convolutions, which are not linears, with their norms; layers; a bias."""
  tower = config.audio_encoder
  if tower is None:
    return
  channels = _upstream.AUDIO_FILTERS
  for i, (fewer, more) in enumerate(itertools.pairwise((1, *channels))):
    hf_name = f'subsample_conv_projection.layer{i}'
    yield _kernel(
        f'audio_encoder.feature.subsampling_{i}',
        f'{hf_name}.conv',
        (3, 3, fewer, more),
    )
    yield _audio_norm(
        f'audio_encoder.feature.norm_{i}', f'{hf_name}.norm', more
    )
  for layer in range(tower.num_layers):
    yield from _audio_layer(tower, layer)
  yield _leaf(
      'audio',
      'audio_encoder.output_projection.bias',
      'output_proj.bias',
      (tower.lm_model_dims,),
      projection='bias',
      group='others',
  )


def _audio_layer(
    tower: _upstream.ConformerConfig, layer: int
) -> Iterator[Leaf]:
  """The leaves of one layer, in the order of the forward pass."""
  width = tower.model_dims
  path = f'audio_encoder.conformer/stacked_layers_{layer}'
  hf_path = f'layers.{layer}'

  def norm(name, hf_name):
    return _audio_norm(
        f'{path}.{name}', f'{hf_path}.{hf_name}', width, layer=layer
    )

  for name in ('pre_layer_norm', 'post_layer_norm'):
    yield norm(f'fflayer_start.{name}', f'feed_forward1.{name}')
  yield norm('trans_atten.pre_norm', 'norm_pre_attn')
  yield _leaf(
      'audio',
      f'{path}.trans_atten.self_atten.per_dim_scale',
      f'{hf_path}.self_attn.per_dim_scale',
      (width // tower.atten_num_heads,),
      projection='per_dim_scale',
      group='scalars',
      layer=layer,
  )
  yield norm('trans_atten.post_norm', 'norm_post_attn')
  yield norm('lconv.ln', 'lconv1d.pre_layer_norm')
  yield _kernel(
      f'{path}.lconv.depthwise_conv1d',
      f'{hf_path}.lconv1d.depthwise_conv1d',
      (tower.conv_kernel_size, 1, width),
      layer=layer,
  )
  yield norm('lconv.conv_norm', 'lconv1d.conv_norm')
  for name in ('pre_layer_norm', 'post_layer_norm'):
    yield norm(f'fflayer_end.{name}', f'feed_forward2.{name}')
  yield norm('final_ln', 'norm_out')


def _audio_norm(
    path: str, hf_name: str, size: int, layer: int | None = None
) -> Leaf:
  return _leaf(
      'audio',
      f'{path}.scale',
      hf_name,
      (size,),
      projection=path.rpartition('.')[2],
      group='norms',
      layer=layer,
  )


def _kernel(
    path: str, hf_name: str, shape: tuple[int, ...], layer: int | None = None
) -> Leaf:
  """A convolution's `[*window, in, out]`; its tensor is `[out, in, *window]`."""
  return _leaf(
      'audio',
      f'{path}.kernel',
      f'{hf_name}.weight',
      shape,
      projection=path.rpartition('.')[2],
      group='others',
      layer=layer,
  )


def _leaf(
    tower: str,
    path: str,
    hf_name: str,
    shape: tuple[int, ...],
    *,
    projection: str,
    group: str,
    layer: int | None = None,
    stacked: bool = False,
) -> Leaf:
  return Leaf(
      tower=tower,
      layer=layer,
      projection=projection,
      group=group,
      path=path,
      shape=shape,
      axes=(f'{tower}_encoder',) * len(shape),
      stacked=stacked,
      hf_name=f'{tower}_tower.{hf_name}',
      is_hf_module=group == 'norms',
  )
