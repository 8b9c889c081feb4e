"""Logits against transformers and PEFT, through the wrappers."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

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


@pytest.mark.parametrize('name', ['ad_e', 'ad_dense', 'ad_e_dora'])
def test_adapter_logits_equal_peft(name):
  """PEFT's A and B, transposed into ours, give PEFT's logits."""
  ref = hf_reference.load(name.split('_')[1])
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
    prefix = f'base_model.model.model.{row.hf_name}'
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


def _set(params, path, **leaves):
  """Sets the LoRA leaves at a dotted path."""
  for key in path.split('.'):
    params = params.setdefault(key, {})
  params |= {k: np.asarray(v, np.float32) for k, v in leaves.items()}
