"""`g4.hf.save_peft`: the files, round trips, and what it refuses."""

import ctypes
import dataclasses
import json
import math
import os
import re
import shutil

from gemma import gm
import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from gemma4_lora import g4
from gemma4_lora.gemma4 import _linears
from gemma4_lora.peft import _branch
from gemma4_lora.peft import _full_tensors
from gemma4_lora.peft import _write_config
from gemma4_lora.targets import _by_row
from tests.lib import hf_reference
from tests.lib import random_params

_TENSORS = 'adapter_model.safetensors'
_CONFIG = 'adapter_config.json'
_CAUSAL = 'Gemma4ForCausalLM'
_ROOT = 'base_model.model.'

Rule = g4.targets.Rule


def _read(path):
  """Returns config and tensors of a folder."""
  config = json.loads((path / _CONFIG).read_text())
  return config, safetensors.numpy.load_file(path / _TENSORS)


def _assert_same(got, want):
  """Same tree, dtype and bits."""
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert np.asarray(x).dtype == np.asarray(y).dtype
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


# ------------------------------- Round trips ------------------------------


@pytest.mark.parametrize('name', hf_reference.ADAPTERS)
def test_folder_of_peft_comes_back_bit_for_bit(name, tmp_path):
  """Names, metadata and bits of the tensors; and the settings."""
  base = hf_reference.ADAPTERS[name]
  folder = hf_reference.TESTDATA / name
  lora = g4.hf.load_peft(folder, model=hf_reference.load(base).model)
  path = tmp_path / 'again'
  g4.hf.save_peft(
      path,
      model=lora.model,
      params=lora.params,
      base_model_class=_CAUSAL
      if base != 'e_mm'
      else 'Gemma4ForConditionalGeneration',
      base_model_name_or_path=f'tiny-gemma4/{base}',
  )
  want_config, want = _read(folder)
  config, got = _read(path)
  _assert_same(got, want)
  with safetensors.safe_open(path / _TENSORS, framework='numpy') as file:
    assert file.metadata() == {'format': 'pt'}
  # Other words for the same modules.
  for words in ('target_modules', 'rank_pattern'):
    mine, theirs = config.pop(words), want_config.pop(words)
    if words == 'target_modules' and isinstance(theirs, list):
      assert sorted(mine) == sorted(theirs)
  # PEFT keeps the names as its user gave them: ends of ours.
  ends = want_config.pop('modules_to_save') or ()
  for module in config.pop('modules_to_save') or ():
    assert any(module.endswith(end) for end in ends), module
  assert config == want_config


_MOE = 'Gemma4_26B_A4B'
_CASES = {
    'text': ('Gemma4_E2B', dict(alpha=8)),
    'rules': (
        'Gemma4_E4B',
        dict(
            alpha=3.5,
            targets=[
                Rule('q', layers='1:4', rank=2),
                Rule('attention', attention='global', rank=5, alpha=1),
                Rule(['down', 'per_layer_inputs'], exclude='layer_2.**'),
            ],
        ),
    ),
    'dora_rslora': (
        'Gemma4_31B',
        dict(use_dora=True, use_rslora=True, targets=['o', Rule('k', rank=1)]),
    ),
    'router': (
        _MOE,
        dict(targets=[Rule('router', rank=2), 'shared_expert']),
    ),
    'experts': (
        _MOE,
        dict(alpha=8, targets=['text', g4.targets.experts(rank=2)]),
    ),
    'experts_rslora': (
        _MOE,
        dict(alpha=5, use_rslora=True, targets='experts'),
    ),
    'gate_alone': (_MOE, dict(targets='expert_gate')),
    'up_and_down': (
        _MOE,
        dict(targets=[Rule('expert_up', rank=3), 'expert_down']),
    ),
    'gate_and_up_apart': (
        _MOE,
        dict(
            targets=[
                Rule('expert_gate', layers='1:3', rank=3),
                Rule('expert_up', layers=[2, 5], rank=2),
            ]
        ),
    ),
    'towers': (
        'Gemma4_E2B',
        dict(
            alpha=16,
            dropout=0.1,
            targets=[
                'vision',
                Rule('audio', exclude=['linear_start', 'linear_end'], rank=3),
                'linear_start',
                Rule('linear_end', layers=1, alpha=1),
                Rule('multimodal_projections', alpha=2),
                'relative_position',
                'subsampling',
                'output_projection',
                'patch_embedding',
                Rule('k', layers=0),
            ],
        ),
    ),
}


def _lora(case):
  name, kwargs = _CASES[case]
  model = getattr(g4.testing, name)(text_only=case != 'towers')
  return g4.nn.LoRA(**({'rank': 4, 'model': model} | kwargs))


@pytest.mark.parametrize(
    ('case', 'experts'),
    [
        *((case, 'stacked') for case in _CASES),
        *((c, 'per_expert') for c in _CASES if _CASES[c][0] == _MOE),
    ],
)
def test_ours_comes_back_bit_for_bit(case, experts, tmp_path):
  """Leaves and, for each projection, rank, alpha and method."""
  model = _lora(case)
  leaves = random_params.lora(model)
  path = tmp_path / 'lora'
  g4.hf.save_peft(path, model=model, params=leaves, experts=experts)
  again = g4.hf.load_peft(path, model=model.model)
  _assert_same(again.params, leaves)
  assert again.model.adapted == model.adapted
  assert again.model.use_rslora == model.use_rslora


def test_zero_b_comes_back(tmp_path):
  """Before training: zeros do not say that gate and up are apart, the file does."""
  model = _lora('experts')
  leaves = random_params.lora(model)
  leaves = jax.tree_util.tree_map_with_path(
      lambda path, x: np.zeros_like(x) if path[-1].key == 'b' else x, leaves
  )
  g4.hf.save_peft(tmp_path / 'x', model=model, params=leaves)
  again = g4.hf.load_peft(tmp_path / 'x', model=model.model)
  _assert_same(again.params, leaves)


def test_zero_b_of_peft_comes_back(tmp_path):
  """One A for gate and up, whose halves differ: it is not two of half the rank."""
  path = tmp_path / 'x'
  shutil.copytree(hf_reference.TESTDATA / 'ad_moe_gu', path)
  _, want = _read(path)
  for key, value in want.items():
    if 'lora_B' in key:
      value[:] = 0
  safetensors.numpy.save_file(want, path / _TENSORS)
  lora = g4.hf.load_peft(path, model=hf_reference.load('moe').model)
  assert lora.model.rank == 4
  g4.hf.save_peft(
      path,
      model=lora.model,
      params=lora.params,
      base_model_class=_CAUSAL,
      overwrite=True,
  )
  _assert_same(_read(path)[1], want)


def test_gate_and_up_are_apart_though_peft_saved_again(tmp_path):
  """PEFT drops the note; what is in the tensors is enough once B is not zero."""
  model = _lora('experts')
  leaves = random_params.lora(model)
  path = tmp_path / 'x'
  g4.hf.save_peft(path, model=model, params=leaves)
  _, tensors = _read(path)
  safetensors.numpy.save_file(tensors, path / _TENSORS, {'format': 'pt'})
  again = g4.hf.load_peft(path, model=model.model)
  _assert_same(again.params, leaves)
  # Once PEFT trained it, gate and up share A, of twice the rank.
  key = f'{_ROOT}model.language_model.layers.1.experts.base_layer.lora_B.weight'
  tensors[key] = tensors[key] + np.float32(0.1)
  safetensors.numpy.save_file(tensors, path / _TENSORS, {'format': 'pt'})
  again = g4.hf.load_peft(path, model=model.model)
  a = again.params['layer_1']['mlp']['gating_einsum']['lora']
  np.testing.assert_array_equal(a['expert_gate']['a'], a['expert_up']['a'])
  assert a['expert_up']['a'].shape[-1] == 4


@pytest.mark.parametrize('kind', ['shared', 'other scale'])
def test_gate_and_up_have_one_scale_in_peft(kind, tmp_path):
  """B of up takes what its scale is more; the products stay."""
  base = g4.testing.Gemma4_26B_A4B()
  model = g4.nn.LoRA(
      rank=2,
      targets=[Rule('expert_gate', alpha=3), Rule('expert_up', alpha=9)],
      model=base,
  )
  leaves = random_params.lora(model)
  if kind == 'shared':
    for layer in leaves.values():
      lora = layer['mlp']['gating_einsum']['lora']
      lora['expert_up']['a'] = lora['expert_gate']['a']
  g4.hf.save_peft(tmp_path / 'x', model=model, params=leaves)
  config, tensors = _read(tmp_path / 'x')
  assert config['r'] == (2 if kind == 'shared' else 4)
  assert all('base_layer' not in key for key in tensors)
  again = g4.hf.load_peft(tmp_path / 'x', model=base)

  def deltas(model, params):
    views = {}
    for x in model.adapted:
      node = params
      for key in x.row.lora_path.split('.'):
        node = node[key]
      views[x.row.name] = x.scale(use_rslora=False) * (
          np.asarray(node['a']) @ np.asarray(node['b'])
      )
    return views

  got, want = deltas(again.model, again.params), deltas(model, leaves)
  assert got.keys() == want.keys()
  for name, value in want.items():
    np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-6)


# ---------------------------------- Files ---------------------------------


@pytest.mark.parametrize(
    ('base', 'targets', 'cls'),
    [
        ('e', 'text', _CAUSAL),
        ('e', ['q', Rule('mlp', layers='2:5'), 'per_layer_inputs'], _CAUSAL),
        ('moe', ['router', 'experts', 'v'], _CAUSAL),
        ('e_mm', 'text', None),
        ('e_mm', [Rule('v'), 'vision', 'mm_input_projection'], None),
    ],
)
def test_config_targets_what_the_file_has(base, targets, cls, tmp_path):
  """As PEFT reads it, on each module that transformers has: those, no more.

  The clipped linears around `.linear` are among them: PEFT refuses those.
  """
  ref = hf_reference.load(base)
  model = g4.nn.LoRA(rank=2, targets=targets, model=ref.model)
  kwargs = {} if cls is None else {'base_model_class': cls}
  g4.hf.save_peft(
      tmp_path / 'x', model=model, params=random_params.lora(model), **kwargs
  )
  config, tensors = _read(tmp_path / 'x')
  weights = safetensors.numpy.load_file(
      hf_reference.TESTDATA / base / 'model.safetensors'
  )
  names = {n.removesuffix('.weight') for n in weights}
  names |= {n.rpartition('.')[0] for n in names}  # Modules around.
  targeted = config['target_modules']
  if isinstance(targeted, str):
    matched = {n for n in names if re.fullmatch(targeted, n)}
  else:
    matched = {n for n in names if n.rpartition('.')[2] in targeted}
  there = {
      k.removeprefix(_ROOT).rpartition('.lora_')[0]
      for k in tensors
      if '.experts.' not in k
  }
  assert matched == there
  assert config['target_parameters'] == (
      ['experts.gate_up_proj', 'experts.down_proj'] if base == 'moe' else None
  )


def test_router_is_named_as_peft_does(tmp_path):
  model = g4.nn.LoRA(
      rank=2, targets=['router'], model=g4.testing.Gemma4_26B_A4B()
  )
  g4.hf.save_peft(tmp_path / 'x', model=model, params=random_params.lora(model))
  _, tensors = _read(tmp_path / 'x')
  prefix = f'{_ROOT}model.language_model.layers.5.router.proj'
  assert tensors[f'{prefix}.lora_A.weight'].shape == (2, 40)
  assert tensors[f'{prefix}.lora_B.weight'].shape == (6, 2)
  assert len(tensors) == 12


def test_patterns_give_each_module_its_rank_and_alpha(tmp_path):
  """Read as PEFT does, also after it sorted them: the first that fits decides."""
  for case in ('rules', 'experts', 'experts_rslora', 'towers'):
    model = _lora(case)
    g4.hf.save_peft(
        tmp_path / case, model=model, params=random_params.lora(model)
    )
    config, tensors = _read(tmp_path / case)
    for key, array in tensors.items():
      if not key.endswith('lora_A.weight'):
        continue
      name = key.removeprefix(_ROOT).removesuffix('.lora_A.weight')
      experts = 1
      if name.endswith('.experts.base_layer'):
        name = name.replace('base_layer', 'gate_up_proj')
        experts = 6
      elif name.endswith('.experts'):
        name += '.down_proj'
        experts = 6
      rank = _first(config['rank_pattern'], name, config['r'])
      assert array.shape[0] == experts * rank
      alpha = _first(config['alpha_pattern'], name, config['lora_alpha'])
      scale = alpha / (math.sqrt(rank) if model.use_rslora else rank)
      assert scale == pytest.approx(_scale_of(model, name), rel=1e-12)
  # PEFT warns of patterns that fit no module.
  config, _ = _read(tmp_path / 'experts')
  modules = r'model.language_model.layers.0.self_attn.q_proj'
  for pattern in config['rank_pattern']:
    assert re.match(rf'(.*\.)?({pattern})$', modules)


def _first(patterns, name, default):
  for pattern in sorted(patterns):
    if re.match(rf'(.*\.)?({pattern})$', name):
      return patterns[pattern]
  return default


def _scale_of(model, name):
  """Of the projection that is called so in transformers."""
  name = re.sub(r'^model\.(language_model\.)?', '', name)
  scales = {
      x.scale(use_rslora=model.use_rslora)
      for x in model.adapted
      if name in x.row.hf_names
  }
  (scale,) = scales
  return scale


def test_one_module_per_expert_for_vllm(tmp_path):
  """`experts.3.gate_proj`, A `[r, in]` and B `[out, r]` of that expert."""
  model = _lora('experts')
  leaves = random_params.lora(model)
  g4.hf.save_peft(
      tmp_path / 'x', model=model, params=leaves, experts='per_expert'
  )
  config, tensors = _read(tmp_path / 'x')
  lora = leaves['layer_4']['mlp']['gating_einsum']['lora']['expert_up']
  name = 'model.language_model.layers.4.experts.3.up_proj'
  np.testing.assert_array_equal(
      tensors[f'{_ROOT}{name}.lora_A.weight'], lora['a'][3].T
  )
  np.testing.assert_array_equal(
      tensors[f'{_ROOT}{name}.lora_B.weight'], lora['b'][3].T
  )
  assert re.fullmatch(config['target_modules'], name)
  assert config['target_parameters'] is None
  assert not any('base_layer' in key for key in tensors)


def test_loftq_is_a_plain_lora_on_the_quantised_base(tmp_path, caplog):
  """PEFT would quantise the base that is there, by another method."""
  base = g4.testing.Gemma4_E2B()
  model = g4.nn.LoRA(
      rank=2,
      targets='q',
      quantize=g4.quant.Int4('attention', group_size=8),
      init_lora_weights='loftq',
      model=base,
  )
  leaves = random_params.lora(model)
  g4.hf.save_peft(tmp_path / 'x', model=model, params=leaves)
  config, _ = _read(tmp_path / 'x')
  assert config['init_lora_weights'] is True
  assert "'loftq': this LoRA makes up for what quantising" in caplog.text
  loaded = g4.hf.load_peft(tmp_path / 'x', model=base)
  jax.tree.map(np.testing.assert_array_equal, loaded.params, leaves)


# ------------------------------ What it refuses ---------------------------


@pytest.fixture
def small():
  """A small model with LoRA, and its leaves."""
  model = g4.nn.LoRA(rank=1, targets='q', model=g4.testing.Gemma4_31B())
  return {'model': model, 'params': random_params.lora(model)}


def test_existing_folder_is_kept_unless_told(small, tmp_path):
  path = tmp_path / 'x'
  path.mkdir()
  (path / 'old').write_text('old')
  with pytest.raises(FileExistsError, match='x exists.*overwrite=True'):
    g4.hf.save_peft(path, **small)
  assert os.listdir(path) == ['old']
  g4.hf.save_peft(path, **small, overwrite=True)
  assert sorted(os.listdir(path)) == [_CONFIG, _TENSORS]
  assert os.listdir(tmp_path) == ['x']  # Nothing beside it.
  with pytest.raises(FileExistsError, match='is a file'):
    g4.hf.save_peft(path / _CONFIG, **small, overwrite=True)


@pytest.mark.parametrize('overwrite', [False, True])
def test_nothing_is_left_of_a_failed_save(
    small, tmp_path, monkeypatch, overwrite
):
  """Disk full while the tensors are written: the old folder stays."""
  path = tmp_path / 'x'
  if overwrite:
    g4.hf.save_peft(path, **small)
    before = (path / _TENSORS).read_bytes()

  def full(*args, **kwargs):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(safetensors.numpy, 'save_file', full)
  with pytest.raises(OSError, match='No space left'):
    g4.hf.save_peft(path, **small, overwrite=overwrite)
  assert os.listdir(tmp_path) == (['x'] if overwrite else [])
  if overwrite:
    assert (path / _TENSORS).read_bytes() == before


def test_folder_is_replaced_where_the_system_cannot_swap(
    small, tmp_path, monkeypatch
):
  """Two renames then; and the old folder comes back if the second fails."""
  monkeypatch.setattr(ctypes, 'CDLL', lambda *args, **kwargs: object())
  path = tmp_path / 'x'
  path.mkdir()
  rename, calls = os.rename, []

  def second_fails(*args):
    calls.append(args)
    if len(calls) == 2:
      raise OSError('Gone')
    rename(*args)

  with monkeypatch.context() as patch:
    patch.setattr(os, 'rename', second_fails)
    with pytest.raises(OSError, match='Gone'):
      g4.hf.save_peft(path, **small, overwrite=True)
  assert os.listdir(tmp_path) == ['x'] and not os.listdir(path)
  g4.hf.save_peft(path, **small, overwrite=True)
  assert os.listdir(tmp_path) == ['x'] and len(os.listdir(path)) == 2


def test_arguments_are_checked(small, tmp_path):
  path = tmp_path / 'x'
  bare = small | {'model': g4.testing.Gemma4_31B()}
  with pytest.raises(ValueError, match='takes a g4.nn.LoRA. Got: Gemma4_31B'):
    g4.hf.save_peft(path, **bare)
  with pytest.raises(ValueError, match="experts=...\\) takes one of.*'2d'"):
    g4.hf.save_peft(path, **small, experts='2d')
  with pytest.raises(ValueError, match='base_model_class=.* takes one of'):
    g4.hf.save_peft(path, **small, base_model_class='Gemma3ForCausalLM')
  assert not path.exists()


def test_params_are_checked(small, tmp_path):
  path = tmp_path / 'x'
  q = small['params']['layer_0']['attn']['q_einsum']['lora']['q']
  a = q['a']
  q['a'] = a * np.nan
  with pytest.raises(ValueError, match='NaN or infinite values: .*lora.q.a'):
    g4.hf.save_peft(path, **small)
  q['a'] = a[:-1]
  with pytest.raises(ValueError, match=r'q.a is \(39, 1\) in params and \(40'):
    g4.hf.save_peft(path, **small)
  del q['a']
  with pytest.raises(ValueError, match=r"has \['b'\] at layer_0.*\['a', 'b'\]"):
    g4.hf.save_peft(path, **small)
  with pytest.raises(ValueError, match='params has no layer_0'):
    g4.hf.save_peft(path, **small | {'params': {}})
  assert not path.exists()


def test_towers_need_the_multimodal_class(tmp_path):
  model = _lora('towers')
  with pytest.raises(ValueError, match='Gemma4ForCausalLM has no vision tower'):
    g4.hf.save_peft(
        tmp_path / 'x',
        model=model,
        params=random_params.lora(model),
        base_model_class=_CAUSAL,
    )


@pytest.mark.parametrize(
    ('base', 'targets', 'message', 'dropout'),
    [
        (
            'Gemma4_31B',
            [Rule('q', dropout=0.2), 'v'],
            'one dropout for all: 0.1. Left out: [0.2]',
            0.1,
        ),
        ('Gemma4_26B_A4B', 'expert_down', 'dropout=0.1 is left out', 0),
    ],
    ids=['two', 'experts'],
)
def test_what_peft_cannot_say_is_logged(
    tmp_path, caplog, base, targets, message, dropout
):
  """It has one dropout, and none on stacked experts."""
  base = getattr(g4.testing, base)()
  model = g4.nn.LoRA(rank=1, dropout=0.1, targets=targets, model=base)
  with caplog.at_level('WARNING'):
    g4.hf.save_peft(
        tmp_path / 'x', model=model, params=random_params.lora(model)
    )
  assert message in caplog.text
  assert _read(tmp_path / 'x')[0]['lora_dropout'] == dropout


def test_a_start_that_changed_the_base_is_told(tmp_path, caplog):
  """PEFT takes the same from its base when it loads."""
  model = g4.nn.LoRA(
      rank=2,
      targets='q',
      init_lora_weights='pissa_niter_4',
      model=g4.testing.Gemma4_31B(),
  )
  path = tmp_path / 'x'
  g4.hf.save_peft(path, model=model, params=random_params.lora(model))
  assert _read(path)[0]['init_lora_weights'] == 'pissa_niter_4'
  with caplog.at_level('WARNING'):
    again = g4.hf.load_peft(path, model=model.model)
  assert 'fits only the base' in caplog.text
  assert again.model.init_lora_weights == 'pissa_niter_4'


@pytest.mark.parametrize(
    'cls', [gm.nn.Gemma4_E2B, gm.nn.Gemma4_31B, gm.nn.Gemma4_26B_A4B]
)
def test_real_models_get_readable_rules_and_targets(cls, tmp_path):
  """Text and towers of the real ones; one expression of few words."""
  model = g4.nn.LoRA(
      rank=4,
      targets=['text', 'vision'],
      model=cls(text_only=False),
  )
  rows = [x.row for x in model.adapted]
  table = _linears.linears(model.model.config)
  assert _by_row.rules({row.name: (4, 8) for row in rows}, table) == (
      4,
      8,
      [Rule(('text', 'vision'))],
  )
  branches = [
      _branch.Branch(
          tower=row.tower,
          name=name,
          module=name,
          rank=4,
          alpha=8,
          a=np.zeros(0),
          b=np.zeros(0),
      )
      for row in rows
      for name in row.hf_names
  ]
  config = _write_config.config(
      branches,
      table,
      base_model_class='Gemma4ForConditionalGeneration',
      init_lora_weights='default',
  )
  assert len(config['target_modules']) < 2500
  assert config['rank_pattern'] == {}


# --------------------------- Trained in full ------------------------------


def _in_full(modules_to_save, name='Gemma4_E2B', **kwargs):
  model = getattr(g4.testing, name)(**kwargs)
  return g4.nn.LoRA(
      rank=2, targets='q', modules_to_save=modules_to_save, model=model
  )


@pytest.mark.parametrize(
    'modules_to_save',
    [
        'norms',
        ['embeddings', Rule(['k', 'gate', 'o'], layers=0)],
        [Rule('norms', tower='vision'), Rule('v', tower='vision')],
        [Rule('norms', tower='audio'), Rule('o', tower='audio')],
    ],
)
def test_what_is_trained_in_full_comes_back(modules_to_save, tmp_path):
  model = _in_full(modules_to_save, text_only=False)
  params = random_params.lora(model)
  g4.hf.save_peft(tmp_path / 'x', model=model, params=params)
  lora = g4.hf.load_peft(tmp_path / 'x', model=model.model)
  _assert_same(lora.params, params)
  config, tensors = _read(tmp_path / 'x')
  has_embedding = any(
      p.row.projection == 'input_embedding' for p in model.saved
  )
  assert config['ensure_weight_tying'] == has_embedding
  assert ('base_model.model.lm_head.weight' in tensors) == has_embedding


@pytest.mark.parametrize(
    ('modules_to_save', 'name', 'match'),
    [
        (
            'layer_0.skip_scale',
            'Gemma4_E2B',
            'layer_0.skip_scale, and PEFT can',
        ),
        (
            'expert_down',
            'Gemma4_26B_A4B',
            'expert_down, and PEFT can keep whole',
        ),
    ],
)
def test_what_is_no_module_of_transformers(
    modules_to_save, name, match, tmp_path
):
  model = _in_full(modules_to_save, name)
  with pytest.raises(ValueError, match=match):
    g4.hf.save_peft(
        tmp_path / 'x', model=model, params=random_params.lora(model)
    )
  assert not list(tmp_path.iterdir())


def test_two_audio_norms_in_full_have_two_names(tmp_path):
  """As `Gemma4AudioSubSampleConvProjection` of transformers 5.24 has them."""
  names = [f'audio_encoder.feature.norm_{i}' for i in (0, 1)]
  model = _in_full(names, text_only=False)
  g4.hf.save_peft(tmp_path / 'x', model=model, params=random_params.lora(model))
  _, tensors = _read(tmp_path / 'x')
  root = 'base_model.model.model.audio_tower.subsample_conv_projection'
  assert {f'{root}.layer{i}.norm.weight' for i in (0, 1)} <= set(tensors)


def test_what_has_no_name_in_transformers():
  (saved,) = _in_full('final_norm').saved
  row = dataclasses.replace(saved.row, hf_name='')
  saved = dataclasses.replace(saved, row=row)
  match = 'final_norm, whose name in transformers is not known'
  with pytest.raises(ValueError, match=match):
    _full_tensors.to_modules(
        [(saved, np.ones(32))],
        base_model_class='Gemma4ForCausalLM',
        who='g4.hf.save_peft',
    )


def test_dora_on_stacked_layers_comes_back(tmp_path):
  base = g4.testing.Gemma4_E2B(text_only=False)
  model = g4.nn.LoRA(rank=2, targets=['q', 'vision'], use_dora=True, model=base)
  params = random_params.lora(model)
  g4.hf.save_peft(tmp_path / 'x', model=model, params=params)
  lora = g4.hf.load_peft(tmp_path / 'x', model=base)
  _assert_same(lora.params, params)
