"""The router's input, against the router that gemma HEAD has."""

from gemma import gm
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4_lora import g4
from tests.lib import models
from tests.lib import random_params

_TOKENS = jnp.arange(3, 27).reshape(2, 12)


def test_changes_nothing_around_a_model_without_experts():
  model = models.base()
  params = random_params.make(model)
  fixed = g4.nn.RouterFix(model=model)
  np.testing.assert_array_equal(
      fixed.apply({'params': params}, _TOKENS).logits,
      model.apply({'params': params}, _TOKENS).logits,
  )


def test_router_reads_the_blocks_own_input():
  """Scaling `pre_ffw_norm` must not move the router: it stands behind it."""
  model = models.base('Gemma4_26B_A4B', dtype=jnp.float32)
  model = g4.nn.RouterFix(model=model)
  params = random_params.make(model)

  def router_logits(params):
    _, state = model.apply(
        {'params': params},
        _TOKENS,
        capture_intermediates=lambda m, _: m.name == 'router_logits',
    )
    layer = state['intermediates']['layer_0']['mlp']['router_logits']
    return layer['__call__'][0]

  before = router_logits(params)
  norm = params['layer_0']['pre_ffw_norm']
  norm['scale'] = norm['scale'] * jnp.linspace(0.1, 3.0, norm['scale'].size)
  np.testing.assert_array_equal(router_logits(params), before)


def test_lora_with_no_target_in_a_layer_mends_its_router_too():
  base = models.base('Gemma4_26B_A4B')
  model = g4.nn.LoRA(rank=2, targets='layer_1.attn.q', model=base)
  params = random_params.make(model)
  lora = params['layer_1']['attn']['q_einsum'].pop('lora')
  want = g4.nn.RouterFix(model=base).apply({'params': params}, _TOKENS).logits
  lora['q']['b'] *= 0
  params['layer_1']['attn']['q_einsum']['lora'] = lora
  got = model.apply({'params': params}, _TOKENS).logits
  np.testing.assert_array_equal(got, want)


def test_is_a_model_to_a_sampler():
  model = g4.nn.RouterFix(model=g4.testing.Gemma4_26B_A4B())
  assert model.INFO.tokenizer_version == 4
  cache = model.init_cache(batch_size=1, dtype=jnp.bfloat16, cache_length=4)
  assert cache['layer_0']['k'].shape == (1, 4, 4, 8)


def test_refuses_other_models():
  with pytest.raises(ValueError, match='takes a Gemma 4 model'):
    g4.nn.RouterFix(model=gm.nn.Gemma3_1B())
