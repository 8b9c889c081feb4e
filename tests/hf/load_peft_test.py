"""`g4.hf.load_peft`: what it reads, and what it refuses."""

import json
import math
import re
import shutil

from gemma import gm
import jax
from kauldron import konfig
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from gemma4_lora import g4
from tests.lib import hf_reference
from tests.lib import random_params

_TENSORS = 'adapter_model.safetensors'
_CONFIG = 'adapter_config.json'


def _model(name):
  return hf_reference.load(hf_reference.ADAPTERS[name]).model


def _file(name):
  return safetensors.numpy.load_file(hf_reference.TESTDATA / name / _TENSORS)


@pytest.mark.parametrize('name', hf_reference.ADAPTERS)
def test_counts_equal_peft(name):
  """As many parameters; but for A of gate and up of experts, which is one there."""
  lora = g4.hf.load_peft(hf_reference.TESTDATA / name, model=_model(name))
  file = _file(name)
  # The output head, tied to the embedding: one table here.
  file.pop('base_model.model.lm_head.weight', None)
  want = sum(x.size for x in file.values())
  if name in ('ad_moe', 'ad_moe_gu'):
    inner = '' if name == 'ad_moe_gu' else '.base_layer'
    shared = f'experts{inner}.lora_A.weight'
    want += sum(x.size for key, x in file.items() if key.endswith(shared))
  assert sum(x.size for x in jax.tree.leaves(lora.params)) == want
  assert sum(map(math.prod, lora.model.lora_shapes.values())) == want
  dtypes = {x.dtype for x in jax.tree.leaves(lora.params)}
  assert dtypes == {np.dtype(np.float32)}


def test_rules_say_rank_and_alpha_of_patterns():
  """q has rank 8, v alpha 32, down of layer 1 rank 2, the rest 4 and 8."""
  name = 'ad_dense_rslora_patterns'
  lora = g4.hf.load_peft(hf_reference.TESTDATA / name, model=_model(name))
  rule = g4.targets.Rule
  assert lora.model.use_rslora
  assert (lora.model.rank, lora.model.alpha) == (4, 8)
  assert lora.model.targets == (
      rule(('k', 'o', 'gate', 'up')),
      rule('down', layers=(0, 2, 3, 4, 5)),
      rule('q', rank=8, alpha=8),
      rule('v', rank=4, alpha=32),
      rule('down', layers=1, rank=2, alpha=8),
  )
  again = [
      rule(**json.loads(json.dumps(x.__dict__))) for x in lora.model.targets
  ]
  clone = lora.model.clone(targets=again)
  assert clone.adapted == lora.model.adapted


@pytest.mark.parametrize(
    ('name', 'experts', 'projections'),
    [
        ('ad_moe', '', ['expert_down']),
        ('ad_moe', '.base_layer', ['expert_gate', 'expert_up']),
        ('ad_moe_dn', '', ['expert_down']),
        ('ad_moe_gu', '', ['expert_gate', 'expert_up']),
    ],
)
def test_product_of_experts_is_what_peft_adds(name, experts, projections):
  """`einsum('o r e, e r i -> e o i', B, A) * scale`, as its `ParamWrapper` has it."""
  lora = g4.hf.load_peft(hf_reference.TESTDATA / name, model=_model(name))
  file = _file(name)
  prefix = f'base_model.model.model.layers.2.experts{experts}'
  a = file[f'{prefix}.lora_A.weight'].reshape(6, 4, -1)
  b = file[f'{prefix}.lora_B.weight']
  want = np.einsum('ore,eri->eoi', b.reshape(len(b), 4, 6), a)
  scope = 'linear' if projections == ['expert_down'] else 'gating_einsum'
  leaves = lora.params['layer_2']['mlp'][scope]['lora']
  got = [
      np.einsum('eir,ero->eoi', leaves[x]['a'], leaves[x]['b'])
      for x in projections
  ]
  np.testing.assert_allclose(np.concatenate(got, 1), want, atol=1e-6)


def test_a_start_that_the_model_refuses_has_the_path(folder):
  """As LoRA itself says it, of a config that is PEFT's own."""
  path = folder('ad_moe', config={'init_lora_weights': 'olora'})
  _refuses(path, f"{re.escape(str(path))}/adapter_config.json: .*'olora'")


def test_names_of_a_file_cannot_act_upon_a_terminal(folder):
  full = 'base_model.model.model.\x1b[2Jnorm.weight'
  path = folder('ad_dense', tensors=_set(full, np.ones(3, np.float32)))
  with pytest.raises(ValueError, match=r'\\x1b\[2Jnorm') as told:
    g4.hf.load_peft(path, model=_model('ad_dense'))
  assert '\x1b' not in str(told.value)


def _twice(old, new):
  """Names tensors a second time, in other words."""
  return lambda file: file.update(
      {k.replace(old, new): x for k, x in list(file.items()) if old in k}
  )


@pytest.mark.parametrize(
    ('name', 'edit', 'match'),
    [
        (
            'ad_dense',
            _twice('.model.model.', '.model.'),
            r'has LoRA of layer_0.* twice:'
            r' base_model.model.(model.)?layers.0.(?P<x>\S+) and'
            r' base_model.model.(model.)?layers.0.(?P=x)\.',
        ),
        (
            'ad_e_full',
            _twice('.model.norm', '.language_model.model.norm'),
            r'final_norm, trained in full, twice:'
            r' base_model.model.(\S+\.)?model.norm.weight and'
            r' base_model.model.(\S+\.)?model.norm.weight\.',
        ),
        (
            'ad_e_dora',
            _twice('lora_magnitude_vector', 'lora_magnitude_vector.weight'),
            r'one tensor twice: \S+vector(.weight)? and \S+vector(.weight)?\.',
        ),
    ],
)
def test_what_stands_there_twice_is_an_error(folder, name, edit, match):
  """Names the file, and both keys."""
  path = folder(name, tensors=edit)
  _refuses(path, f'{re.escape(str(path))}.*{match}')


@pytest.fixture
def folder(tmp_path):
  """A copy of an adapter, and what edits it."""

  def copy(name, *, config=None, tensors=None):
    path = tmp_path / name
    shutil.copytree(hf_reference.TESTDATA / name, path)
    fields = json.loads((path / _CONFIG).read_text()) | (config or {})
    (path / _CONFIG).write_text(json.dumps(fields))
    if tensors:
      file = _file(name)
      tensors(file)
      safetensors.numpy.save_file(file, path / _TENSORS)
    return path

  return copy


def _refuses(path, match, model=None, error=ValueError):
  model = _model(path.name) if model is None else model
  with pytest.raises(error, match=match):
    g4.hf.load_peft(path, model=model)


_Q = 'base_model.model.model.layers.0.self_attn.q_proj'


@pytest.mark.parametrize(
    ('config', 'match'),
    [
        (
            {'peft_type': 'IA3'},
            "peft_type='IA3', and g4.nn.LoRA is 'LORA' only",
        ),
        ({'bias': 'lora_only'}, "bias='lora_only'.* has bias='none'"),
        ({'modules_to_save': ['norm']}, "nothing of modules_to_save='norm'"),
        ({'layer_replication': [[0, 4]]}, 'layer_replication='),
        ({'use_dora': True}, r'lacks 41 tensors: .*magnitude_vector'),
        ({'r': 8}, r'down_proj has rank 4 .*r=8, rank_pattern={}'),
        ({'r': 0}, r'r takes a positive integer as rank. Got: 0'),
        ({'lora_alpha': '8'}, "lora_alpha takes a finite number .* Got: '8'"),
        ({'lora_alpha': float('nan')}, 'lora_alpha takes a finite .* Got: nan'),
        ({'lora_alpha': 1e999}, 'lora_alpha takes a finite number .* Got: inf'),
        ({'lora_alpha': 10**400}, 'lora_alpha takes a finite number'),
        ({'lora_alpha': 0}, 'lora_alpha takes a finite number other than 0'),
        ({'lora_alpha': True}, 'lora_alpha takes a finite number'),
        ({'alpha_pattern': {'q_proj': 1e999}}, 'q_proj takes a finite number'),
        ({'alpha_pattern': ['q_proj']}, 'alpha_pattern takes an object'),
        ({'rank_pattern': {'q_proj': 2.0}}, 'q_proj takes a positive integer'),
        (
            {'use_rslora': 'false'},
            "use_rslora takes true or false. Got: 'false'",
        ),
        ({'use_dora': 1}, 'use_dora takes true or false'),
        ({'lora_dropout': '0.1'}, 'lora_dropout takes a rate'),
        ({'lora_dropout': float('nan')}, 'lora_dropout takes a rate'),
        (
            {'modules_to_save': 'norm'},
            'modules_to_save takes a list of strings',
        ),
        ({'target_parameters': [3]}, 'target_parameters takes a list of str'),
        ({'target_modules': [None]}, 'target_modules takes a string or a list'),
        ({'layers_to_transform': ['0']}, 'layers_to_transform takes a number'),
        ({'layers_pattern': 7}, 'layers_pattern takes a string or a list'),
        (
            {'target_modules': '(.*)*x'},
            'has 41 modules that .* does not target',
        ),
        ({'target_modules': r'(q)\1'}, r'target_modules: .* has groupref'),
        ({'rank_pattern': {'(.*)*x': 3}, 'r': 8}, 'has rank 4'),
        (
            {'rank_pattern': {'q_proj': 2}},
            r"rank 4 .*rank_pattern={'q_proj': 2}",
        ),
        ({'rank_pattern': {'(': 2}}, r"'\(' is no regular expression"),
        ({'target_modules': 3}, 'target_modules takes a string or a list'),
        (
            {'target_modules': ['q_proj']},
            r'has 35 modules that .*adapter_config.json does not target'
            r".*target_modules=\['q_proj'\]",
        ),
        (
            {'exclude_modules': ['layers.2.mlp.up_proj']},
            r'1 modules .*layers.2.mlp.up_proj.*exclude_modules=',
        ),
        ({'layers_to_transform': [0, 1]}, r'layers_to_transform=\[0, 1\]'),
        ({'init_lora_weights': 'corda'}, "init_lora_weights='corda' changes"),
        ({'init_lora_weights': 'pissa_niter_x'}, "='pissa_niter_x' changes"),
    ],
)
def test_config_that_the_file_contradicts_is_an_error(folder, config, match):
  """PEFT would ignore tensors, draw others anew, or compute something else."""
  _refuses(folder('ad_dense', config=config), match)


def _pop(key):
  return lambda file: file.pop(key)


def _set(key, value):
  return lambda file: file.update({key: value})


@pytest.mark.parametrize(
    ('edit', 'match'),
    [
        (_pop(f'{_Q}.lora_B.weight'), rf'lacks 1 tensors: {_Q}.lora_B.weight'),
        (
            lambda file: [file.pop(f'{_Q}.lora_{x}.weight') for x in 'AB'],
            r'lacks 1 of \d+ modules that .* targets: layers.0.self_attn.q_proj',
        ),
        (
            _set('base_model.model.lm_head.weight', np.ones(3, np.float32)),
            'lm_head.weight, which is not the embedding',
        ),
        (
            _set(f'{_Q}.lora_embedding_A', np.ones(3, np.float32)),
            'LoRA on an embedding',
        ),
        (
            lambda file: file.update(
                {
                    f'{_Q[:-1]}.lora_{x}.weight': file[f'{_Q}.lora_{x}.weight']
                    for x in 'AB'
                }
            ),
            r'1 modules that the model does not have:'
            r' model.layers.0.self_attn.q_pro. Did you mean'
            r' layers.0.self_attn.q_proj',
        ),
        (
            _set(f'{_Q}.lora_A.weight', np.full((4, 32), np.nan, np.float32)),
            rf'{_Q}.lora_A.weight has 128 of 128 values that are NaN',
        ),
        (
            _set(f'{_Q}.lora_A.weight', np.ones((4, 32), np.int32)),
            'is int32, and LoRA has floating tensors only',
        ),
        (
            _set(f'{_Q}.lora_A.weight', np.ones((4, 31), np.float32)),
            rf'{_Q}.lora_A.weight: file \(4, 31\), model \(4, 32\)',
        ),
        (
            _set(f'{_Q}.lora_A.weight', np.ones((3, 32), np.float32)),
            r'q_proj has rank 3 and 4 .*says 4',
        ),
        (
            _set(f'{_Q}.lora_magnitude_vector', np.ones(32, np.float32)),
            r'1 magnitudes of DoRA.*use_dora=False',
        ),
        (lambda file: file.clear(), 'has no tensors'),
    ],
)
def test_tensors_at_odds_with_the_model_are_an_error(folder, edit, match):
  """Each names the tensor, and both sides."""
  _refuses(folder('ad_dense', tensors=edit), match)


def test_magnitude_is_missed_by_name(folder):
  key = f'{_Q}.lora_magnitude_vector'
  _refuses(folder('ad_e_dora', tensors=_pop(key)), rf'lacks 1 .*{key}')


def test_adapter_of_another_model_is_an_error(folder):
  """Other layers, another size, towers that a text-only model lacks."""
  path = folder('ad_dense')
  _refuses(
      path,
      r'1 modules that the model does not have: .*tensors of another shape:'
      r' .*lora_A.weight: file \(4, 64\), model \(4, 56\).*another size',
      model=g4.testing.Gemma4_31B(),
  )
  _refuses(
      folder('ad_moe'),
      r'12 modules that the model does not have: model.layers.0.experts.*And'
      r' 18 tensors of another shape',
      model=_model('ad_dense'),
  )


def test_towers_need_a_model_with_towers(tmp_path):
  model = g4.nn.LoRA(
      rank=2,
      targets=['vision', 'q'],
      model=g4.testing.Gemma4_E2B(text_only=False),
  )
  g4.hf.save_peft(tmp_path / 'x', model=model, params=random_params.lora(model))
  _refuses(
      tmp_path / 'x',
      'The model has no towers: make it with text_only=False',
      model=g4.testing.Gemma4_E2B(),
  )


def test_dead_rows_are_an_error_that_says_why(folder):
  """k of a KV-shared layer: transformers has no such module."""

  def edit(file):
    for x in 'AB':
      old = f'base_model.model.model.layers.4.self_attn.k_proj.lora_{x}.weight'
      file[old.replace('layers.4', 'layers.9')] = file[old]

  _refuses(
      folder('ad_e', tensors=edit),
      '1 modules whose result the model never uses: model.layers.9.self_attn'
      '.k_proj. Their layers read the keys and values of another',
  )


def test_some_layers_of_a_stacked_tower_are_an_error(tmp_path):
  """gemma keeps the layers of the vision tower in one weight."""
  model = g4.nn.LoRA(
      rank=2, targets='vision', model=g4.testing.Gemma4_E2B(text_only=False)
  )
  path = tmp_path / 'x'
  g4.hf.save_peft(path, model=model, params=random_params.lora(model))
  file = safetensors.numpy.load_file(path / _TENSORS)
  layer = {k: v for k, v in file.items() if 'layers.1.' not in k}
  safetensors.numpy.save_file(layer, path / _TENSORS)
  fields = json.loads((path / _CONFIG).read_text())
  both = fields['target_modules']
  fields['target_modules'] = both.replace('(0|1)', '0')
  (path / _CONFIG).write_text(json.dumps(fields))
  _refuses(path, r'adapts 1 of the 2 modules of vision', model=model.model)
  # And one rank for all.
  safetensors.numpy.save_file(file, path / _TENSORS)
  fields |= {
      'target_modules': both,
      'alpha_pattern': {r'layers\.1\..*': 5},
  }
  (path / _CONFIG).write_text(json.dumps(fields))
  _refuses(path, r'have several ranks and alphas', model=model.model)


def test_experts_without_their_parameter_are_an_error(folder):
  """Which tensor `experts.lora_A` is of stands in the config alone."""
  _refuses(
      folder('ad_moe_gu', config={'target_parameters': None}),
      r'adapts 1 tensors of model.layers.0.experts, but .* names 0 of them:'
      r' target_parameters=\[\]',
  )
  _refuses(
      folder('ad_moe', config={'target_parameters': ['experts.down_proj']}),
      r'adapts 2 tensors .* names 1',
  )


def test_files_that_are_not_there_or_damaged(folder, tmp_path):
  model = _model('ad_dense')
  missing = tmp_path / 'missing'
  _refuses(missing, 'missing does not exist', model, FileNotFoundError)
  path = folder('ad_dense')
  _refuses(path / _CONFIG, 'is a file', model, FileNotFoundError)
  data = (path / _TENSORS).read_bytes()
  for end in (4, 100, len(data) - 1):
    (path / _TENSORS).write_bytes(data[:end])
    _refuses(path, f'truncated: .*{_TENSORS} has {end} bytes')
  (path / _TENSORS).rename(path / 'adapter_model.bin')
  _refuses(path, 'It has: .*safe_serialization', error=FileNotFoundError)
  (path / _CONFIG).write_text('{')
  shutil.copy(path / 'adapter_model.bin', path / _TENSORS)
  _refuses(path, f'{_CONFIG} is damaged, or no JSON')
  (path / _CONFIG).write_text('<!DOCTYPE html>')
  _refuses(path, f'{_CONFIG} is no JSON: it is a web page')
  (path / _CONFIG).write_text('{"r": 1, "r": 2}')
  _refuses(path, f'{_CONFIG} is damaged.* the key r stands there twice')
  (path / _CONFIG).write_text('[]')
  _refuses(path, f'{_CONFIG} is no object')
  base = hf_reference.TESTDATA / 'dense'
  _refuses(base, 'looks like a whole model', model, FileNotFoundError)


def test_model_that_is_wrapped_already_is_an_error():
  path = hf_reference.TESTDATA / 'ad_dense'
  model = _model('ad_dense')
  wrapped = g4.nn.LoRA(rank=2, model=model)
  _refuses(path, 'with LoRA already. Pass the bare model', wrapped)
  _refuses(path, 'takes a Gemma 4 model', gm.nn.Gemma3_270M())


def test_half_precision_becomes_float32(folder):
  """Exactly: every bfloat16 is a float32."""

  def edit(file):
    for key in file:
      file[key] = file[key].astype(ml_dtypes.bfloat16)

  path = folder('ad_dense', tensors=edit)
  lora = g4.hf.load_peft(path, model=_model('ad_dense'))
  a = lora.params['layer_0']['attn']['q_einsum']['lora']['q']['a']
  want = safetensors.numpy.load_file(path / _TENSORS)[f'{_Q}.lora_A.weight']
  assert a.dtype == np.float32
  np.testing.assert_array_equal(a, want.astype(np.float32).T)


def test_rules_of_a_config_survive_json():
  """What was loaded can be written in a config."""
  name = 'ad_dense_rslora_patterns'
  model = _model(name)
  rules = g4.hf.load_peft(
      hf_reference.TESTDATA / name, model=model
  ).model.targets
  with konfig.imports():
    from gemma4_lora import g4 as lazy  # pylint: disable=reimported
  cfg = konfig.ConfigDict(
      {'rules': [lazy.targets.Rule(**vars(rule)) for rule in rules]}
  )
  again = konfig.resolve(konfig.ConfigDict(json.loads(cfg.to_json()))).rules
  assert tuple(again) == rules
  assert re.match(r"Rule\('q', rank=8, alpha=8\)", repr(rules[2]))


# --------------------------- Trained in full ------------------------------

_IN_FULL = (
    'embed_tokens',
    'embed_tokens_per_layer',
    'input_layernorm',
    'down_proj',
    'k_proj',
)


@pytest.mark.parametrize(
    ('config', 'edit', 'match'),
    [
        (
            {'ensure_weight_tying': False},
            None,
            'ensure_weight_tying=False: the output head keeps the base',
        ),
        (
            {'modules_to_save': ['embed_tokens']},
            None,
            r'unexpected tensor model\..*modules_to_save=.*does not have it',
        ),
        (
            {},
            _pop('base_model.model.model.norm.weight'),
            "nothing of modules_to_save='model.norm'",
        ),
        (
            {},
            _set('base_model.model.model.norm.weight', np.ones(3, np.float32)),
            r'final_norm, trained in full: file \(3,\), model \(32,\)',
        ),
        (
            {'modules_to_save': [*_IN_FULL, 'nrom']},
            lambda file: file.update(
                {
                    'base_model.model.model.nrom.weight': file.pop(
                        'base_model.model.model.norm.weight'
                    )
                }
            ),
            'model.nrom, trained in full, which the model does not have',
        ),
    ],
)
def test_what_is_trained_in_full_and_does_not_fit(folder, config, edit, match):
  _refuses(folder('ad_e_full', config=config, tensors=edit), match)


def test_modules_to_save_are_ends_of_names_as_in_peft(folder):
  """`norm` is every module whose name ends so, `mlp` all that is in one."""
  weights = hf_reference.tensors('dense')
  norms = {k: x for k, x in weights.items() if k.endswith('norm.weight')}

  def edit(file):
    file.update({f'base_model.model.{k}': x + 1 for k, x in norms.items()})

  path = folder('ad_dense', config={'modules_to_save': ['norm']}, tensors=edit)
  lora = g4.hf.load_peft(path, model=_model('ad_dense'))
  assert len(lora.model.saved) == len(norms) > 10
  np.testing.assert_array_equal(
      *jax.tree.leaves(lora.params['final_norm']),
      norms['model.norm.weight'] + 1,
  )
  file = safetensors.numpy.load_file(path / _TENSORS)
  del file['base_model.model.model.layers.1.input_layernorm.weight']
  safetensors.numpy.save_file(file, path / _TENSORS)
  _refuses(
      path, r"lacks 1 modules of modules_to_save=\['norm'\].*input_layernorm"
  )


def test_names_what_is_trained_in_full():
  lora = g4.hf.load_peft(
      hf_reference.TESTDATA / 'ad_e_full', model=_model('ad_e_full')
  )
  assert [part.row.name for part in lora.model.saved] == [
      'layer_1.mlp.down',
      'layer_2.attn.k',
      'embedder.input_embedding',
      'embedder.per_layer_embeddings',
      'layer_0.pre_attention_norm',
      'final_norm',
  ]
