"""What we write beside weights, against what transformers wrote."""

import dataclasses
import json

import pytest

from gemma4_lora.hf.weights import _config_files
from tests.lib import hf_reference
from tests.lib import image_cases

_MODELS = ('e', 'dense', 'moe', 'e_mm')
_WITH_IMAGES = ('e_images', 'dense_images', 'unified_images')
# Fields that no number of a model follows from. Theirs are of tiny vocabularies.
_FREE = {
    'audio_token_id',
    'boa_token_id',
    'boi_token_id',
    'eoa_token_index',
    'eoi_token_id',
    'image_token_id',
    'max_position_embeddings',
    'transformers_version',
    'video_token_id',
}


def _theirs(name):
  path = hf_reference.TESTDATA / name / 'config.json'
  config = json.loads(path.read_text())
  # Layers that differ, as the released files name them.
  text = config.get('text_config', config)
  layers = text.pop('per_layer_config').values()
  (fields,) = {json.dumps(x) for x in layers}
  fields = json.loads(fields)
  text['global_head_dim'] = fields['head_dim']
  text['num_global_key_value_heads'] = fields.get('num_key_value_heads')
  return config


def _config(name):
  load = image_cases.load if name in _WITH_IMAGES else hf_reference.load
  reference = load(name)
  model = reference.base if name in _WITH_IMAGES else reference.model
  return model.config


def _made(name, **kwargs):
  tensors = hf_reference.tensors(name)
  return _config_files.model_config(
      {k: v.shape for k, v in tensors.items()},
      _config(name),
      name=_theirs(name)['architectures'][0],
      dtype='float32',
      **kwargs,
  )


def _flat(config, prefix=''):
  flat = {}
  for key, value in config.items():
    if isinstance(value, dict) and key.endswith('_config'):
      flat |= _flat(value, f'{key}.')
    elif key not in _FREE and value is not None:
      flat[prefix + key] = value
  return flat


@pytest.mark.parametrize('name', [*_MODELS, *_WITH_IMAGES])
def test_is_what_transformers_wrote(name):
  """All fields but ids of tags, without its file."""
  got, want = _flat(_made(name)), _flat(_theirs(name))
  if name == 'e_mm':  # An older name of a field that is read nowhere.
    del want['vision_config.global_head_dim']
  for key in want:
    assert got[key] == want[key], key
  assert not got.keys() - want.keys()


def test_audio_is_as_released():
  """Defaults of `Gemma4AudioConfig`, transformers 5.24; E2B's shapes."""
  tower = 'model.audio_tower.'
  layer = f'{tower}layers.11.'
  shapes = {
      f'{tower}output_proj.weight': (1536, 1024),
      f'{tower}subsample_conv_projection.layer0.conv.weight': (128, 1, 3, 3),
      f'{tower}subsample_conv_projection.layer1.conv.weight': (32, 128, 3, 3),
      f'{layer}norm_out.weight': (1024,),
      f'{tower}layers.0.self_attn.per_dim_scale': (128,),
      f'{tower}layers.0.self_attn.q_proj.input_max': (),
      f'{tower}layers.0.lconv1d.depthwise_conv1d.weight': (1024, 1, 5),
  }
  tensors = hf_reference.tensors('e_mm')
  got = _config_files.model_config(
      {k: v.shape for k, v in tensors.items()} | shapes,
      _config('e_mm'),
      name='Gemma4ForConditionalGeneration',
      dtype='bfloat16',
  )['audio_config']
  assert got == {
      'attention_chunk_size': 12,
      'attention_context_left': 13,
      'attention_context_right': 0,
      'attention_invalid_logits_value': -1e9,
      'attention_logit_cap': 50.0,
      'conv_kernel_size': 5,
      'gradient_clipping': 1e10,
      'hidden_act': 'silu',
      'hidden_size': 1024,
      'initializer_range': 0.02,
      'model_type': 'gemma4_audio',
      'num_attention_heads': 8,
      'num_hidden_layers': 12,
      'output_proj_dims': 1536,
      'residual_weight': 0.5,
      'rms_norm_eps': 1e-6,
      'subsampling_conv_channels': [128, 32],
      'use_clipped_linears': True,
  }


def test_takes_what_does_not_follow_from_the_model():
  like = json.loads(
      (hf_reference.TESTDATA / 'e_mm' / 'config.json').read_text()
  )
  like |= {'quantization_config': {'bits': 4}, 'extra': 3}
  like['text_config']['eos_token_id'] = [1, 5]
  got = _made('e_mm', like=like, where='here')
  assert got['image_token_id'] == 250
  assert got['extra'] == 3
  assert got['text_config']['max_position_embeddings'] == 512
  assert got['text_config']['eos_token_id'] == [1, 5]
  assert 'quantization_config' not in got
  assert 'per_layer_config' not in got['text_config']


def test_text_alone_beside_a_config_of_a_model_with_towers():
  like = json.loads(
      (hf_reference.TESTDATA / 'e_mm' / 'config.json').read_text()
  )
  got = _made('e', like=like)
  assert got['architectures'] == ['Gemma4ForCausalLM']
  assert got['model_type'] == 'gemma4_text'
  assert got['max_position_embeddings'] == 512
  assert 'vision_config' not in got


def test_a_config_of_another_model():
  like = json.loads(
      (hf_reference.TESTDATA / 'dense' / 'config.json').read_text()
  )
  with pytest.raises(
      ValueError,
      match=(
          r'^here: text_config is of another model: .*; num_hidden_layers is 6'
          r' there, 10 in the model; '
      ),
  ):
    _made('e', like=like, where='here')


def test_generation_of_released_models():
  """The files of google/gemma-4-12B-it and E2B-it, in short vocabularies too."""
  class_name = 'Gemma4UnifiedForConditionalGeneration'
  config = dataclasses.replace(_config('e'), num_embed=262_144)
  got = _config_files.generation_config(config, name=class_name)
  assert got == {
      'bos_token_id': 2,
      'do_sample': True,
      'eos_token_id': [1, 106, 50],
      'pad_token_id': 0,
      'suppress_tokens': [258883, 258882],
      'temperature': 1.0,
      'top_k': 64,
      'top_p': 0.95,
  }
  got = _config_files.generation_config(config, name='Gemma4ForCausalLM')
  assert 'suppress_tokens' not in got
  tiny = dataclasses.replace(config, num_embed=64)
  got = _config_files.generation_config(tiny, name=class_name)
  assert got['eos_token_id'] == [1, 50]
  assert 'suppress_tokens' not in got
