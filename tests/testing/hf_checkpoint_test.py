"""Tiny models as folders of transformers, against those that it wrote."""

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
  # `config_files_test` compares the others.
  for key in ('hidden_size', 'num_hidden_layers', 'vocab_size', 'dtype'):
    assert config[key] == _config(hf_reference.TESTDATA / name)[key]


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
