"""Tiny models as folders of transformers, against those that it wrote."""

import dataclasses
import json

from kauldron import kd
import numpy as np
import pytest
import safetensors.numpy

from gemma4_lora import g4
from tests.lib import hf_reference


def _config(folder):
  return json.loads((folder / 'config.json').read_text())


@pytest.mark.parametrize('name', ['e', 'dense', 'moe'])
def test_is_the_folder_that_transformers_wrote(tmp_path, name):
  """Bit for bit, from its values in gemma's arrangement."""
  reference = hf_reference.load(name)
  g4.testing.make_checkpoint(
      reference.model, tmp_path / 'c', layout='hf', params=reference.params
  )
  written = safetensors.numpy.load_file(tmp_path / 'c' / 'model.safetensors')
  tensors = hf_reference.tensors(name)
  assert written.keys() == tensors.keys()
  for key, value in tensors.items():
    np.testing.assert_array_equal(written[key], value, err_msg=key)
    assert written[key].dtype == value.dtype
  config = _config(tmp_path / 'c')
  theirs = _config(hf_reference.TESTDATA / name)
  assert config == {key: theirs[key] for key in config}
  # What is left out has transformers' defaults, and no size in it.
  assert theirs.keys() - config.keys() == {
      'attention_bias',
      'attention_dropout',
      'bos_token_id',
      'eos_token_id',
      'initializer_range',
      'pad_token_id',
      'transformers_version',
      'use_bidirectional_attention',
      'use_cache',
  }


def test_numbers_of_layers_are_as_wide_as_the_last(tmp_path):
  """As transformers has them: `'02'` of 12 layers."""
  model = g4.testing.Gemma4_31B(tokens='x')
  config = dataclasses.replace(
      model.config, attention_types=model.config.attention_types * 2
  )
  g4.testing.make_checkpoint(
      model.clone(config=config), tmp_path / 'c', layout='hf'
  )
  layers = _config(tmp_path / 'c')['per_layer_config']
  assert list(layers) == ['02', '05', '08', '11']
  assert layers['02'] == {'head_dim': 16, 'num_key_value_heads': 2}


def test_is_restored(tmp_path):
  """By our own reader."""
  model = g4.testing.Gemma4_E2B(tokens='batch.input')
  params = g4.testing.make_checkpoint(model, tmp_path / 'c', layout='hf')
  state = kd.train.TrainState(
      step=0,
      params=g4.testing.make_checkpoint(model, tmp_path / 'other', seed=1),
      opt_state=None,
      collections={},
  )
  restored = g4.ckpts.PartialLoad(path=tmp_path / 'c').transform(state).params
  np.testing.assert_array_equal(
      restored['layer_0']['mlp']['gating_einsum'],
      params['layer_0']['mlp']['gating_einsum'],
  )


def test_towers_are_refused(tmp_path):
  with pytest.raises(ValueError, match='has towers: give one with text_only'):
    g4.testing.make_checkpoint(
        g4.testing.Gemma4_E2B(tokens='x', text_only=False),
        tmp_path / 'c',
        layout='hf',
    )
  assert not (tmp_path / 'c').exists()
