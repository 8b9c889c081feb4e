"""A quantised base: the model is that of what codes and scales stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4_lora import g4
from gemma4_lora.nn import _quantized
from tests import dequantized
from tests import training

_TOKENS = np.random.default_rng(0).integers(3, 1000, (2, 6))
_MIXED = (
    g4.quant.Int8('embeddings'),
    g4.quant.NF4(['mlp', 'o'], group_size=2, double=True),
    g4.quant.Int4(group_size=2),
)
_INT4 = g4.quant.Int4(group_size=2)


def _base(name, **kwargs):
  cls = getattr(g4.testing, name)
  return training.shallow(cls(tokens='batch.input', **kwargs))


def _params(model, *, seed=0):
  """Random parameters of the model without `quantize=`, and quantised."""
  plain = model.clone(quantize=None)
  params = training.random_params(plain, seed=seed)
  quantized = _quantized.quantize(params, model.quantized)
  return plain, dequantized.tree(quantized, model.model.dtype), quantized


def _value_and_grads(model, params):
  """Logits, and gradients to the LoRA leaves."""
  leaves, treedef = jax.tree.flatten(params)
  is_lora = ['lora' in path for path in training.flat(params)]

  def loss(lora):
    lora = iter(lora)
    merged = [
        next(lora) if x else y for x, y in zip(is_lora, leaves, strict=True)
    ]
    variables = {'params': treedef.unflatten(merged)}
    logits = model.apply(variables, _TOKENS).logits
    return jnp.sin(logits).sum(), logits

  lora = [y for x, y in zip(is_lora, leaves, strict=True) if x]
  (_, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(lora)
  return logits, grads


@pytest.mark.parametrize(
    ('name', 'quantize', 'settings'),
    [
        ('Gemma4_E2B', _MIXED, {}),
        ('Gemma4_E2B', 'int8', {'remat': 'dots', 'use_dora': True}),
        ('Gemma4_E2B', _INT4, {'scan_layers': True, 'attention': 'blockwise'}),
        ('Gemma4_26B_A4B', _MIXED, {'targets': ['q', 'experts']}),
        ('Gemma4_26B_A4B', _INT4, {'targets': 'v', 'remat': 'block'}),
    ],
)
def test_model_is_that_of_the_dequantized_base(name, quantize, settings):
  """Logits and gradients, of a base that is dequantised by the formula."""
  model = g4.nn.LoRA(
      rank=2,
      model=_base(name, dtype=jnp.float32),
      quantize=quantize,
      **settings,
  )
  plain, dense, params = _params(model)
  got, got_grads = _value_and_grads(model, params)
  want, want_grads = _value_and_grads(plain, dense)
  np.testing.assert_allclose(got, want, rtol=0, atol=3e-5 * abs(want).max())
  assert all(np.abs(x).max() > 1e-4 for x in want_grads)
  for x, y in zip(got_grads, want_grads, strict=True):
    np.testing.assert_allclose(x, y, rtol=0, atol=2e-4 * abs(y).max())
