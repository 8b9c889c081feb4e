"""Folders of mlx-lm: names, shapes and products, as its source computes them."""

import json

import numpy as np
import pytest
import safetensors.numpy

from gemma4_lora import g4
from tests.lib import random_params


def _model(size='E2B', **kwargs):
  base = getattr(g4.testing, f'Gemma4_{size}')(tokens='x')
  return g4.nn.LoRA(model=base, **{'rank': 2, 'targets': ['q']} | kwargs)


def _saved(tmp_path, model, **kwargs):
  params = random_params.lora(model)
  g4.hf.save_mlx(tmp_path / 'x', model=model, params=params, **kwargs)
  config = json.loads((tmp_path / 'x' / 'adapter_config.json').read_text())
  path = tmp_path / 'x' / 'adapters.safetensors'
  return params, config, safetensors.numpy.load_file(path)


def test_one_rank_and_scale_for_all(tmp_path):
  """`scale * (x @ lora_a) @ lora_b`, under rsLoRA's scale of each rank."""
  targets = [g4.targets.Rule('o', rank=3, alpha=7.0), 'q', 'down']
  model = _model(targets=targets, use_rslora=True)
  params, config, tensors = _saved(tmp_path, model)
  settings = config['lora_parameters']
  assert settings['rank'] == 3
  assert config['fine_tune_type'] == 'lora'
  keys = {x.rpartition('.')[0] for x in tensors}
  assert settings['keys'] == sorted(keys)
  for linear in model.adapted:
    row = linear.row
    layer, *path = row.lora_path.split('.')
    leaves = params[layer]
    for key in path:
      leaves = leaves[key]
    name = f'language_model.model.{row.hf_name}'
    a, b = (tensors[f'{name}.lora_{x}'] for x in 'ab')
    assert a.shape[1] == b.shape[0] == 3
    rank = linear.shapes['a'][-1]
    want = (
        (linear.alpha / rank**0.5)
        * np.reshape(leaves['a'], (-1, rank))
        @ np.reshape(leaves['b'], (rank, -1))
    )
    np.testing.assert_allclose(
        settings['scale'] * a @ b, want, rtol=3e-6, atol=1e-6
    )


def test_experts_and_text_alone(tmp_path):
  model = _model('26B_A4B', targets='experts')
  params, _, tensors = _saved(
      tmp_path, model, base_model_class='Gemma4ForCausalLM'
  )
  up = params['layer_4']['mlp']['gating_einsum']['lora']['expert_up']
  name = 'model.layers.4.experts.switch_glu.up_proj'
  np.testing.assert_array_equal(
      tensors[f'{name}.lora_a'], np.swapaxes(up['a'], 1, 2)
  )
  np.testing.assert_array_equal(
      tensors[f'{name}.lora_b'], np.swapaxes(up['b'], 1, 2)
  )


def test_magnitudes_of_dora(tmp_path):
  model = _model(use_dora=True)
  params, config, tensors = _saved(tmp_path, model)
  assert config['fine_tune_type'] == 'dora'
  leaves = params['layer_0']['attn']['q_einsum']['lora']['q']
  name = 'language_model.model.layers.0.self_attn.q_proj'
  np.testing.assert_array_equal(tensors[f'{name}.m'], leaves['m'].reshape(-1))


@pytest.mark.parametrize(
    'kwargs,match',
    [
        (
            {'modules_to_save': 'final_norm'},
            r'mlx \(mlx-lm 0\.32\.2\) refuses modules_to_save',
        ),
        ({'init_lora_weights': 'olora'}, "ignores init_lora.*='olora'"),
    ],
)
def test_what_it_has_no_place_for(tmp_path, kwargs, match):
  model = _model(**kwargs)
  with pytest.raises(ValueError, match=f'g4.hf.save_mlx: .*{match}'):
    g4.hf.save_mlx(tmp_path / 'x', model=model, params={})
  assert not list(tmp_path.iterdir())


def test_wrong_arguments():
  with pytest.raises(ValueError, match='takes a g4.nn.LoRA. Got: dict'):
    g4.hf.save_mlx('x', model={}, params={})
  with pytest.raises(ValueError, match='base_model_class=.* Got: .Gemma4.'):
    g4.hf.save_mlx('x', model=_model(), params={}, base_model_class='Gemma4')
