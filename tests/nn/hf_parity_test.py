"""Logits against transformers and PEFT, through the wrappers."""

import math

from gemma import peft as gemma_peft
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from gemma4_lora import g4
from gemma4_lora.gemma4 import _linears
from tests.lib import hf_reference

# The reference is in float32: in float64 we are as far from it, 3e-4 at most.
_ATOL = 5e-4


def test_base_logits_equal_transformers():
  """The router of gemma 4.0.1 alone is 6.9 away."""
  ref = hf_reference.load('moe')
  model = g4.nn.RouterFix(model=ref.model)
  logits = model.apply({'params': ref.params}, jnp.asarray(ref.tokens)).logits
  np.testing.assert_allclose(logits, ref.logits, atol=_ATOL)


# Of adapters with the same mathematics, one: `load_peft_test` has the others.
@pytest.mark.parametrize(
    'name',
    ['ad_e_mm', 'ad_e_dora', 'ad_e_full', 'ad_dense_rslora_patterns', 'ad_moe'],
)
def test_adapter_logits_equal_peft(name):
  """Text, DoRA, rsLoRA with patterns, experts, and what is trained in full."""
  ref = hf_reference.load(hf_reference.ADAPTERS[name])
  folder = hf_reference.TESTDATA / name
  lora = g4.hf.load_peft(folder, model=ref.model)
  params = gemma_peft.merge_params(ref.params, lora.params)
  with jax.enable_x64(True):
    # Where positions amplify rounding, ours shall not come on top of theirs.
    params = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), float), params)
    model = lora.model.clone(
        dtype=float, model=lora.model.model.clone(dtype=float)
    )
    logits = model.apply({'params': params}, jnp.asarray(ref.tokens)).logits
  assert logits.dtype == float
  want = np.load(hf_reference.TESTDATA / f'{name}.npz')['logits']
  assert np.abs(want - ref.logits).max() > 0.1  # The adapter does something.
  np.testing.assert_allclose(logits, want, atol=_ATOL)


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
