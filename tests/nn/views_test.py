"""The view of adapted projections as base, A and B."""

import jax
import numpy as np
import pytest

from gemma4_lora import g4
from tests.lib import models
from tests.lib import random_params


def test_packed_weights_are_split_into_projections():
  model = g4.nn.LoRA(rank=3, alpha=6, model=models.base('Gemma4_E2B'))
  params = random_params.make(model)
  views = g4.nn.linears(model, params)
  assert list(views) == [linear.row.name for linear in model.adapted]

  layer = params['layer_0']
  gating = layer['mlp']['gating_einsum']
  np.testing.assert_array_equal(views['layer_0.mlp.gate'].base, gating[0])
  np.testing.assert_array_equal(views['layer_0.mlp.up'].base, gating[1])
  np.testing.assert_array_equal(
      views['layer_0.mlp.down'].base, layer['mlp']['linear']
  )
  kv = layer['attn']['kv_einsum']
  np.testing.assert_array_equal(views['layer_0.attn.k'].base, kv['w'][0])
  np.testing.assert_array_equal(views['layer_0.attn.v'].base, kv['w'][1])
  assert views['layer_0.attn.v'].lora_a is kv['lora']['v']['a']
  assert views['layer_0.attn.v'].lora_b is kv['lora']['v']['b']
  assert views['layer_0.attn.v'].scale == 2.0
  assert 'layer_3.attn.v' not in views  # Dead.


def test_experts_keep_their_axis():
  base = models.base('Gemma4_26B_A4B')
  model = g4.nn.LoRA(rank=3, targets='experts', model=base)
  params = random_params.make(model)
  views = g4.nn.linears(model, params)
  mlp = params['layer_0']['mlp']
  up = views['layer_0.mlp.expert_up']
  np.testing.assert_array_equal(up.base, mlp['gating_einsum']['w'][:, 1])
  assert up.lora_a is mlp['gating_einsum']['lora']['expert_up']['a']
  down = views['layer_0.mlp.expert_down']
  np.testing.assert_array_equal(down.base, mlp['linear']['w'])
  assert down.lora_b is mlp['linear']['lora']['expert_down']['b']


def test_takes_shapes_as_well_as_arrays():
  model = g4.nn.LoRA(rank=3, model=models.base('Gemma4_26B_A4B'))
  params = random_params.make(model)
  abstract = jax.eval_shape(lambda: params)
  want = g4.nn.linears(model, params)
  for name, view in g4.nn.linears(model, abstract).items():
    for field in ('base', 'lora_a', 'lora_b'):
      got = getattr(view, field)
      assert got.shape == getattr(want[name], field).shape
      assert got.dtype == getattr(want[name], field).dtype


def test_a_missing_leaf_is_named():
  model = g4.nn.LoRA(rank=3, model=models.base())
  params = random_params.make(model)
  del params['layer_1']['mlp']['lora']['up']
  with pytest.raises(ValueError, match=r'layer_1\.mlp\.lora\.up'):
    g4.nn.linears(model, params)


def test_a_model_without_lora_is_refused():
  with pytest.raises(ValueError, match='takes a g4.nn.LoRA. Got: Gemma4_31B'):
    g4.nn.linears(g4.testing.Gemma4_31B(), {})
