"""Logits against transformers and PEFT, through the wrappers."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from gemma4_lora import _linears
from gemma4_lora import g4
from tests import hf_reference

# float32 by both, in another order of operations.
_ATOL = 5e-4


@pytest.mark.parametrize('name', ['e', 'dense', 'moe'])
@pytest.mark.parametrize('wrap', ['RouterFix', 'LoRA'])
def test_base_logits_equal_transformers(name, wrap):
  """The router of gemma 4.0.1 alone is 6.9 away on `moe`."""
  ref = hf_reference.load(name)
  params = ref.params
  if wrap == 'RouterFix':
    model = g4.nn.RouterFix(model=ref.model)
  else:
    model = g4.nn.LoRA(rank=2, targets='q', model=ref.model)
    for linear in model.adapted:
      a, b = linear.shapes
      _set(params, linear.row.lora_path, a=np.ones(a), b=np.zeros(b))
  logits = model.apply({'params': params}, jnp.asarray(ref.tokens)).logits
  np.testing.assert_allclose(logits, ref.logits, atol=_ATOL)


@pytest.mark.parametrize('name', ['ad_e', 'ad_e_mm', 'ad_dense', 'ad_e_dora'])
def test_adapter_logits_equal_peft(name):
  """PEFT's A and B, transposed into ours, give PEFT's logits."""
  base = name.removeprefix('ad_').removesuffix('_dora')
  ref = hf_reference.load(base)
  folder = hf_reference.TESTDATA / name
  config = json.loads((folder / 'adapter_config.json').read_text())
  adapter = safetensors.numpy.load_file(folder / 'adapter_model.safetensors')
  model = g4.nn.LoRA(
      rank=config['r'],
      alpha=config['lora_alpha'],
      use_dora=config['use_dora'],
      model=ref.model,
  )
  read = set()
  for linear in model.adapted:
    row = linear.row
    nested = 'language_model.' if base == 'e_mm' else ''
    prefix = f'base_model.model.model.{nested}{row.hf_name}'
    a = adapter[f'{prefix}.lora_A.weight']  # [r, in]
    b = adapter[f'{prefix}.lora_B.weight']  # [out, r]
    read |= {f'{prefix}.lora_{x}.weight' for x in 'AB'}
    a_shape, b_shape = linear.shapes
    leaves = {'a': a.T.reshape(a_shape), 'b': b.T.reshape(b_shape)}
    if config['use_dora']:
      key = f'{prefix}.lora_magnitude_vector'
      leaves['m'] = adapter[key].reshape(row.out_shape)
      read.add(key)
    _set(ref.params, row.lora_path, **leaves)
  assert read == set(adapter)  # Same projections as `all-linear` there.

  logits = model.apply({'params': ref.params}, jnp.asarray(ref.tokens)).logits
  want = np.load(hf_reference.TESTDATA / f'{name}.npz')['logits']
  assert np.abs(want - ref.logits).max() > 0.1  # The adapter does something.
  np.testing.assert_allclose(logits, want, atol=_ATOL)


@pytest.mark.parametrize('name', ['ad_moe', 'ad_moe_gu', 'ad_moe_dn'])
def test_expert_adapter_logits_equal_peft(name):
  """Both expert tensors beside attention and dense MLP, and each alone."""
  ref = hf_reference.load('moe')
  folder = hf_reference.TESTDATA / name
  config = json.loads((folder / 'adapter_config.json').read_text())
  adapter = safetensors.numpy.load_file(folder / 'adapter_model.safetensors')
  targets = {
      'ad_moe': ['text', 'experts'],
      'ad_moe_gu': ['expert_gate', 'expert_up'],
      'ad_moe_dn': ['expert_down'],
  }[name]
  model = g4.nn.LoRA(
      rank=config['r'],
      alpha=config['lora_alpha'],
      targets=targets,
      model=ref.model,
  )
  read = set()
  for linear in model.adapted:
    row = linear.row
    module = row.hf_name
    if row.batch_axes:
      module = _expert_module(module, config['target_parameters'])
    prefix = f'base_model.model.model.{module}'
    a = adapter[f'{prefix}.lora_A.weight'].T
    b = adapter[f'{prefix}.lora_B.weight'].T
    read |= {f'{prefix}.lora_{x}.weight' for x in 'AB'}
    a_shape, b_shape = linear.shapes
    if row.batch_axes:
      (experts,), r = row.batch_shape, linear.rank
      # a: [in, E * r], expert-major; b: [r * E, out], rank-major.
      a = a.reshape(-1, experts, r).transpose(1, 0, 2)
      b = b.reshape(r, experts, -1).transpose(1, 0, 2)
      if row.slot is not None:  # One A for both, gate's outputs first.
        b = np.split(b, 2, axis=-1)[row.slot]
    _set(ref.params, row.lora_path, a=a.reshape(a_shape), b=b.reshape(b_shape))
  assert read == set(adapter)

  logits = model.apply({'params': ref.params}, jnp.asarray(ref.tokens)).logits
  want = np.load(hf_reference.TESTDATA / f'{name}.npz')['logits']
  assert np.abs(want - ref.logits).max() > 0.1  # The adapter does something.
  np.testing.assert_allclose(logits, want, atol=_ATOL)


def _expert_module(hf_name, target_parameters):
  """PEFT nests the wrappers of one module's parameters, the last outermost."""
  module, _, parameter = hf_name.rpartition('.')
  parameters = [p.rpartition('.')[2] for p in target_parameters]
  return module + '.base_layer' * parameters[::-1].index(parameter)


def test_towers_are_named_as_in_files_of_transformers():
  """Each linear of the vision tower, by name and shape; and no other."""
  ref = hf_reference.load('e_mm')
  weights = safetensors.numpy.load_file(
      hf_reference.TESTDATA / 'e_mm' / 'model.safetensors'
  )
  want = {
      name: weight.shape
      for name, weight in weights.items()
      if name.startswith(('model.vision_tower.', 'model.embed_vision.'))
      and weight.ndim == 2
  }
  got = {
      f'model.{name}.weight': (
          math.prod(row.out_shape),
          math.prod(row.in_shape),
      )
      for row in _linears.linears(ref.model.config)
      if row.tower == 'vision'
      for name in row.hf_names
  }
  assert got == want


def _set(params, path, **leaves):
  """Sets the LoRA leaves at a dotted path."""
  for key in path.split('.'):
    params = params.setdefault(key, {})
  params |= {k: np.asarray(v, np.float32) for k, v in leaves.items()}
