"""The towers' rows against the real models' own parameters."""

from gemma import gm
import pytest

from gemma4_lora import g4
from gemma4_lora.gemma4 import _linears
from gemma4_lora.gemma4 import _sizes
from tests.lib import table_rows

_RELEASED = [size.cls for size in _sizes.SIZES]
_TINY = [getattr(g4.testing, name) for name in _sizes.NAMES]


def _rows(cls):
  rows = _linears.linears(cls(text_only=False).config)
  return [row for row in rows if row.tower != 'text']


@pytest.mark.parametrize('cls', _RELEASED + _TINY, ids=lambda c: c.__module__)
def test_rows_cover_each_weight_once(cls):
  table_rows.check_each_weight_once(_rows(cls))


@pytest.mark.parametrize('cls', _RELEASED)
def test_a_text_only_model_has_no_tower_rows(cls):
  rows = _linears.linears(cls().config)
  assert {row.tower for row in rows} == {'text'}


# Vision: 7 stacked, patch embedding, projection into the text. Audio: 12 layers
# of 2 * (up, down), q, k, v, o, relative position and 2 of the convolution
# block; subsampling, output projection, projection into the text.
@pytest.mark.parametrize(
    ('cls', 'num_vision', 'num_audio'),
    [
        (gm.nn.Gemma4_E2B, 7 + 2, 12 * 11 + 3),
        (gm.nn.Gemma4_E4B, 7 + 2, 12 * 11 + 3),
        (gm.nn.Gemma4_31B, 7 + 2, 0),
        (gm.nn.Gemma4_26B_A4B, 7 + 2, 0),
    ],
)
def test_counts_of_the_released_models(cls, num_vision, num_audio):
  towers = [row.tower for row in _rows(cls)]
  assert towers.count('vision') == num_vision
  assert towers.count('audio') == num_audio


def test_names_read_well():
  names = [
      (row.name, row.hf_names[0])
      for row in _rows(gm.nn.Gemma4_E2B)
      if row.layer in (None, 0)
  ]
  block = 'vision_encoder.transformer.stacked_layers.block'
  hf_block = 'vision_tower.encoder.layers.0'
  layer = 'audio_encoder.conformer/stacked_layers_0'
  hf = 'audio_tower.layers.0'
  assert names == [
      (
          'vision_encoder.entry.patch_embedding',
          'vision_tower.patch_embedder.input_proj',
      ),
      (f'{block}.attn.q', f'{hf_block}.self_attn.q_proj.linear'),
      (f'{block}.attn.k', f'{hf_block}.self_attn.k_proj.linear'),
      (f'{block}.attn.v', f'{hf_block}.self_attn.v_proj.linear'),
      (f'{block}.attn.o', f'{hf_block}.self_attn.o_proj.linear'),
      (f'{block}.mlp.gate', f'{hf_block}.mlp.gate_proj.linear'),
      (f'{block}.mlp.up', f'{hf_block}.mlp.up_proj.linear'),
      (f'{block}.mlp.down', f'{hf_block}.mlp.down_proj.linear'),
      (
          'embedder.mm_input_projection',
          'embed_vision.embedding_projection',
      ),
      (
          'audio_encoder.feature.subsampling',
          'audio_tower.subsample_conv_projection.input_proj_linear',
      ),
      (f'{layer}.fflayer_start.up', f'{hf}.feed_forward1.ffw_layer_1.linear'),
      (f'{layer}.fflayer_start.down', f'{hf}.feed_forward1.ffw_layer_2.linear'),
      (f'{layer}.trans_atten.self_atten.q', f'{hf}.self_attn.q_proj.linear'),
      (f'{layer}.trans_atten.self_atten.k', f'{hf}.self_attn.k_proj.linear'),
      (f'{layer}.trans_atten.self_atten.v', f'{hf}.self_attn.v_proj.linear'),
      (
          f'{layer}.trans_atten.self_atten.relative_position',
          f'{hf}.self_attn.relative_k_proj',
      ),
      (f'{layer}.trans_atten.o', f'{hf}.self_attn.post.linear'),
      (f'{layer}.lconv.linear_start', f'{hf}.lconv1d.linear_start.linear'),
      (f'{layer}.lconv.linear_end', f'{hf}.lconv1d.linear_end.linear'),
      (f'{layer}.fflayer_end.up', f'{hf}.feed_forward2.ffw_layer_1.linear'),
      (f'{layer}.fflayer_end.down', f'{hf}.feed_forward2.ffw_layer_2.linear'),
      ('audio_encoder.output_projection', 'audio_tower.output_proj'),
      (
          'embedder.audio_input_projection',
          'embed_audio.embedding_projection',
      ),
  ]


def test_a_stacked_row_has_a_linear_per_layer():
  (row,) = (
      row
      for row in _rows(gm.nn.Gemma4_31B)
      if row.tower == 'vision' and row.projection == 'v'
  )
  # 27 layers, 16 heads of 72, width 1152; k and v in one weight.
  assert row.shape == (27, 2, 16, 1152, 72)
  assert row.layers == tuple(range(27))
  assert row.in_shape == (1152,)
  assert row.out_shape == (16, 72)
  assert row.hf_names[26] == (
      'vision_tower.encoder.layers.26.self_attn.v_proj.linear'
  )
  one = row.one_layer
  assert one.shape == (2, 16, 1152, 72)
  assert (one.in_shape, one.out_shape) == ((1152,), (16, 72))
  assert one.shape[one.slot_axis] == 2
