"""Folders for servers: the same products, as each of them computes them.

How each reads a folder is written out here by hand, from its source.
"""

import json
import math
import re

import numpy as np
import pytest
import safetensors.numpy

from gemma4_lora import g4
from tests.lib import random_params

_ROOT = 'base_model.model.'
_RULES = (
    g4.targets.Rule('down', rank=3, alpha=5.0),
    g4.targets.Rule('o', rank=2),
)


def _model(size, *more, **kwargs):
  base = getattr(g4.testing, f'Gemma4_{size}')(tokens='batch.input')
  return g4.nn.LoRA(rank=4, targets=[*_RULES, *more], model=base, **kwargs)


def _saved(tmp_path, model, server, **kwargs):
  params = random_params.lora(model)
  path = tmp_path / server
  g4.hf.save_peft(path, model=model, params=params, server=server, **kwargs)
  config = json.loads((path / 'adapter_config.json').read_text())
  tensors = safetensors.numpy.load_file(path / 'adapter_model.safetensors')
  pairs = {}
  for key, value in tensors.items():
    module, end = re.fullmatch(
        rf'{re.escape(_ROOT)}(.*)\.lora_(A|B)\.weight', key
    ).groups()
    pairs.setdefault(module, {})[end] = value
  return config, pairs


def _by_peft(config, module, rank):
  def of(pattern, default):
    for key, value in pattern.items():
      if re.match(rf'(.*\.)?({key})$', module):
        return value
    return default

  alpha = of(config['alpha_pattern'], config['lora_alpha'])
  assert rank == of(config['rank_pattern'], config['r'])
  return alpha / (math.sqrt(rank) if config['use_rslora'] else rank)


def _products(config, pairs, scale):
  return {
      module: scale(config, module, x['B'].shape[1]) * (x['B'] @ x['A'])
      for module, x in pairs.items()
  }


# What is left in the config where a server does not read patterns.
_READ = {
    # `convert_lora_to_gguf.py` writes `lora_alpha`; the graph divides by B's rank.
    'llama.cpp': lambda config, module, rank: config['lora_alpha'] / rank,
    # `LoRAAdapter.scaling`, with one size of buffers for all.
    'sglang': lambda config, module, rank: config['lora_alpha'] / config['r'],
    'vllm': _by_peft,
}


@pytest.mark.parametrize('use_rslora', [False, True])
@pytest.mark.parametrize(
    'server,size,more',
    [
        ('llama.cpp', 'E2B', 'q'),
        ('sglang', 'E4B', 'gate'),
        ('vllm', 'E2B', 'text'),
        ('vllm', '31B', 'q'),
    ],
)
def test_product_is_that_of_peft(tmp_path, server, size, more, use_rslora):
  model = _model(size, more, use_rslora=use_rslora)
  want = _products(*_saved(tmp_path, model, 'peft'), _by_peft)
  config, pairs = _saved(tmp_path, model, server)
  got = _products(config, pairs, _READ[server])
  assert got.keys() == want.keys()
  for module, value in want.items():
    np.testing.assert_allclose(
        got[module], value, rtol=3e-6, atol=1e-7, err_msg=module
    )
  if server == 'sglang':
    assert {x['A'].shape[0] for x in pairs.values()} == {config['r']} == {4}
    assert config['target_modules'] == sorted(pairs)
  if server != 'vllm':
    assert not config['alpha_pattern']
    assert not config['use_rslora']


def test_rslora_of_one_rank_is_exact(tmp_path):
  """All of its scale is in alpha: the tensors are the same bit for bit."""
  base = g4.testing.Gemma4_E2B(tokens='x')
  model = g4.nn.LoRA(rank=16, alpha=8, use_rslora=True, targets='q', model=base)
  _, want = _saved(tmp_path, model, 'peft')
  config, got = _saved(tmp_path, model, 'llama.cpp')
  assert config['lora_alpha'] == 32  # 8 / sqrt(16) is 32 / 16.
  for module, pair in want.items():
    for name in 'AB':
      np.testing.assert_array_equal(got[module][name], pair[name])


def test_vllm_has_values_beside_keys_that_give_both(tmp_path):
  """31B's global layers hold k_proj twice there; PEFT's folder has it once."""
  model = _model('31B', 'k', 'v')
  _, want = _saved(tmp_path, model, 'peft')
  config, got = _saved(tmp_path, model, 'vllm')
  layers = 'model.language_model.layers.'
  lacking = {x.replace('v_proj', 'k_proj') for x in got.keys() - want.keys()}
  assert lacking == {
      f'{layers}{i}.self_attn.k_proj'
      for i, kind in enumerate(model.config.attention_types)
      if kind.name == 'GLOBAL'
  }
  for keys in lacking:
    values = keys.replace('k_proj', 'v_proj')
    assert re.fullmatch(config['target_modules'], values)
    for name in 'AB':
      np.testing.assert_array_equal(got[values][name], got[keys][name])
      np.testing.assert_array_equal(got[keys][name], want[keys][name])


@pytest.mark.parametrize('server', ['vllm', 'llama.cpp'])
def test_is_read_back_and_checked(tmp_path, server):
  size, more = ('31B', 'attention') if server == 'vllm' else ('E2B', 'gate')
  model = _model(size, more, use_rslora=True)
  params = random_params.lora(model)
  path = tmp_path / 'x'
  g4.hf.save_peft(path, model=model, params=params, server=server)
  loaded = g4.hf.load_peft(path, model=model.model)
  assert len(loaded.model.adapted) == len(model.adapted)
  assert g4.nn.check(model, params, file=path).ok


def test_experts_for_vllm_are_modules(tmp_path):
  """By default: `save_peft_test` has their numbers."""
  base = g4.testing.Gemma4_26B_A4B(tokens='x')
  model = g4.nn.LoRA(rank=2, targets=['q', 'experts'], model=base)
  _, pairs = _saved(tmp_path, model, 'vllm')
  assert 'model.language_model.layers.4.experts.3.up_proj' in pairs
  assert not any('base_layer' in x or 'moe' in x for x in pairs)


def test_names_of_experts_before_vllm_0_33_are_read(tmp_path):
  base = g4.testing.Gemma4_26B_A4B(tokens='x')
  model = g4.nn.LoRA(rank=2, targets='experts', model=base)
  _saved(tmp_path, model, 'vllm')
  path = tmp_path / 'vllm' / 'adapter_model.safetensors'
  tensors = safetensors.numpy.load_file(path)
  safetensors.numpy.save_file(
      {k.replace('.experts.', '.moe.experts.'): v for k, v in tensors.items()},
      path,
  )
  config = tmp_path / 'vllm' / 'adapter_config.json'
  fields = json.loads(config.read_text())
  fields['target_modules'] = '.*moe.experts.*'
  config.write_text(json.dumps(fields))
  (tmp_path / 'vllm' / 'gemma4_lora_commit.json').unlink(missing_ok=True)
  loaded = g4.hf.load_peft(tmp_path / 'vllm', model=base)
  assert len(loaded.model.adapted) == len(model.adapted)


def test_other_values_than_keys_are_no_copy(tmp_path):
  model = _model('31B', 'attention')
  _saved(tmp_path, model, 'vllm')
  path = tmp_path / 'vllm' / 'adapter_model.safetensors'
  tensors = safetensors.numpy.load_file(path)
  name = f'{_ROOT}model.language_model.layers.5.self_attn.v_proj.lora_A.weight'
  tensors[name] = tensors[name] + 1
  safetensors.numpy.save_file(tensors, path)
  (tmp_path / 'vllm' / 'gemma4_lora_commit.json').unlink(missing_ok=True)
  with pytest.raises(ValueError, match=r'layers\.5\.self_attn\.v_proj'):
    g4.hf.load_peft(tmp_path / 'vllm', model=model.model)
