"""A quantised base: the model is that of what codes and scales stand for."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4_lora import g4
from gemma4_lora.nn.branches import _expert_products
from gemma4_lora.nn.branches import _quantized_base
from gemma4_lora.quant import _arrays
from tests.lib import dequantized
from tests.lib import models
from tests.lib import multimodal
from tests.lib import programs
from tests.lib import random_params
from tests.lib import sampling
from tests.lib import training

# No weight of the tiny models has a side of 21 or 42.
_TOKENS = np.random.default_rng(0).integers(3, 1000, (3, 7))
_MIXED = (
    g4.quant.Int8('embeddings'),
    g4.quant.NF4(['mlp', 'o'], group_size=2, double=True),
    g4.quant.Int4(group_size=2),
)
_INT4 = g4.quant.Int4(group_size=2)


def _of_two_equal_layers(name, **kwargs):
  """Which `scan_layers=` makes a loop of: a shallow model has no two."""
  base = models.base(name, **kwargs)
  kind = base.config.attention_types[0]
  return base.clone(
      config=dataclasses.replace(base.config, attention_types=(kind, kind))
  )


def _params(model):
  """The model without `quantize=`, and parameters of both."""
  params = random_params.quantized(model)
  plain = model.clone(quantize=None)
  return plain, dequantized.tree(params, model.model.dtype), params


def _value_and_grads(model, params):
  """Logits, and gradients to the LoRA leaves."""
  leaves, treedef = jax.tree.flatten(params)
  is_lora = ['lora' in path for path in training.flat(params)]

  def loss(lora, base):
    lora, base = iter(lora), iter(base)
    merged = [next(lora if x else base) for x in is_lora]
    variables = {'params': treedef.unflatten(merged)}
    logits = model.apply(variables, _TOKENS).logits
    return jnp.sin(logits).sum(), logits

  lora = [y for x, y in zip(is_lora, leaves, strict=True) if x]
  base = [y for x, y in zip(is_lora, leaves, strict=True) if not x]
  step = jax.jit(jax.value_and_grad(loss, has_aux=True))
  (_, logits), grads = step(lora, base)
  return jax.tree.map(np.asarray, (logits, grads))


@pytest.mark.parametrize(
    ('base', 'quantize', 'settings', 'saving'),
    [
        (
            functools.partial(models.base, 'Gemma4_E2B', cut=models.one_layer),
            # Tables too; scales of int8 have no weight's shape.
            (g4.quant.Int8(['q', 'k', 'v', 'embeddings']), *_MIXED[1:]),
            {'use_dora': True, 'targets': ['q', 'v', 'per_layer_projection']},
            {'remat': 'dots'},
        ),
        (
            functools.partial(_of_two_equal_layers, 'Gemma4_31B'),
            _INT4,
            {'targets': ['k', 'up']},
            {'scan_layers': True, 'attention': 'blockwise'},
        ),
        (
            functools.partial(
                models.base, 'Gemma4_26B_A4B', cut=models.one_layer
            ),
            (g4.quant.Int8('expert_down'), *_MIXED),
            {'targets': ['q', 'expert_up']},
            {'remat': 'block'},
        ),
    ],
    ids=['E2B', '31B', '26B_A4B'],
)
def test_model_is_that_of_the_dequantized_base(
    base, quantize, settings, saving
):
  """Logits and gradients, of a base that is dequantised by the formula.

  The model on the other side saves neither memory nor compile time.
  """
  model = g4.nn.LoRA(
      rank=2, model=base(dtype=jnp.float32), quantize=quantize, **settings
  )
  plain, dense, params = _params(model)
  model = model.clone(**saving)
  got, got_grads = _value_and_grads(model, params)
  want, want_grads = _value_and_grads(plain, dense)
  np.testing.assert_allclose(got, want, rtol=0, atol=3e-5 * abs(want).max())
  assert all(np.abs(x).max() > 1e-4 for x in want_grads)
  for x, y in zip(got_grads, want_grads, strict=True):
    np.testing.assert_allclose(x, y, rtol=0, atol=2e-4 * abs(y).max())


def test_towers():
  """Clipped linears, layers in one weight, dense ones with a bias."""
  base = multimodal.base_of_one_layer('Gemma4_E2B', dtype=jnp.float32)
  model = g4.nn.LoRA(
      rank=2,
      model=base,
      targets=['q', 'vision', 'audio'],
      quantize=[
          g4.quant.Int8(['audio', 'output_projection']),
          g4.quant.NF4('vision', group_size=2),
      ],
  )
  plain = model.clone(quantize=None)
  params = random_params.with_towers(plain)
  params = _quantized_base.quantize(params, model.quantized)
  inputs = multimodal.inputs(audio=True)

  def logits(model, params):
    apply = jax.jit(lambda p: model.apply({'params': p}, **inputs).logits)
    return apply(params)

  got = logits(model, params)
  want = logits(plain, dequantized.tree(params, jnp.float32))
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * abs(want).max())


def test_sampler_says_what_the_dequantized_base_says():
  """With a cache, and logits of the quantised table."""
  # In `bfloat16` a nearly equal pair of logits may change places.
  base = models.base(cut=models.one_layer, dtype=jnp.float32)
  model = g4.nn.LoRA(rank=2, model=base, quantize=_MIXED)
  plain, dense, params = _params(model)
  assert sampling.sampled(model, params) == sampling.greedy(plain, dense)


@pytest.mark.parametrize('name', ['Gemma4_E2B', 'Gemma4_26B_A4B'])
def test_no_weight_of_full_width_is_kept_for_the_backward_pass(name):
  model = g4.nn.LoRA(
      rank=2,
      model=models.base(name),
      targets=['text', 'experts'] if 'A4B' in name else 'text',
      quantize='int8',  # Whose scales have no weight's shape.
  )
  shapes = jax.eval_shape(model.init, jax.random.key(0), _TOKENS)['params']
  of_base = {
      tuple(sorted(_arrays.shape_of(x)))
      for _, x in _quantized_base.quantized_nodes(shapes)
  }

  def kept(params):
    leaves, treedef = jax.tree.flatten(params)
    is_lora = ['lora' in path for path in training.flat(params)]

    def loss(lora):
      lora = iter(lora)
      merged = [
          next(lora) if x else y for x, y in zip(is_lora, leaves, strict=True)
      ]
      variables = {'params': treedef.unflatten(merged)}
      return model.apply(variables, _TOKENS).logits

    lora = [y for x, y in zip(is_lora, leaves, strict=True) if x]
    return jax.vjp(loss, lora)[1]

  residuals = jax.tree.leaves(jax.eval_shape(kept, shapes))
  assert len(residuals) > 50
  codes = [x for x in residuals if x.dtype == jnp.int8]
  assert codes
  for x in residuals:
    if jnp.issubdtype(x.dtype, jnp.floating):
      assert tuple(sorted(x.shape)) not in of_base, x


def test_no_expert_weight_of_full_width_is_ever_there():
  """No more than a quarter of one, forward or backward."""
  model = g4.nn.LoRA(
      rank=2,
      model=models.base('Gemma4_26B_A4B'),
      targets='experts',
      quantize=_INT4,
  )
  shapes = jax.eval_shape(model.init, jax.random.key(0), _TOKENS)['params']
  weight = shapes['layer_0']['mlp']['gating_einsum']['w']
  size = math.prod(_arrays.shape_of(weight))

  def loss(hidden, value):
    sizes = jnp.asarray([3, 5] + [0] * (value['codes'].shape[0] - 2))
    return _expert_products.gate_up(hidden, value, sizes, jnp.bfloat16).sum()

  hidden = jnp.ones((8, _arrays.shape_of(weight)[-1]), jnp.bfloat16)
  program = jax.make_jaxpr(jax.value_and_grad(loss, allow_int=True))
  sizes = {
      x.size
      for x in programs.arrays(program(hidden, weight).jaxpr)
      if jnp.issubdtype(x.dtype, jnp.floating)
  }
  assert size / 32 <= max(sizes) <= size / 4


def test_parameters_and_model_must_agree():
  model = g4.nn.LoRA(rank=2, model=models.base('Gemma4_31B'), quantize=_INT4)
  shapes = jax.eval_shape(model.init, jax.random.key(0), _TOKENS)
  for quantize, message in [
      (None, r'embedding: model not quantised, parameters int4 in groups of 2'),
      (
          g4.quant.Int4('text', group_size=2),
          r'1 leaves of the base.*input_embedding: model not quantised',
      ),
      ('int8', r'attn_vec_einsum.w: model int8 .* parameters int4'),
      (
          g4.quant.Int4(group_size=4),
          r'model int4 in groups of 4.*parameters int4 in groups of 2',
      ),
  ]:
    other = model.clone(quantize=quantize)
    with pytest.raises(ValueError, match=f'(?s){message}'):
      jax.eval_shape(other.apply, shapes, _TOKENS)
    with pytest.raises(ValueError, match='(?s)model int4.*not quantised'):
      plain = jax.eval_shape(
          other.clone(quantize=None).init, jax.random.key(0), _TOKENS
      )
      jax.eval_shape(model.apply, plain, _TOKENS)


def test_what_is_trained_in_full_cannot_be_quantized():
  base = models.base('Gemma4_31B')
  with pytest.raises(
      ValueError, match='modules_to_save= trains 1 parts.*input_embedding'
  ):
    g4.nn.LoRA(
        rank=2,
        model=base,
        quantize=_INT4,
        modules_to_save=['final_norm', 'embeddings'],
    )
  model = g4.nn.LoRA(
      rank=2,
      model=base,
      quantize=g4.quant.Int4('text', group_size=2),
      modules_to_save=['final_norm', 'embeddings'],
  )
  assert len(model.saved) == 2


def test_init_quantizes_what_it_draws():
  model = g4.nn.LoRA(rank=2, model=models.base('Gemma4_31B'), quantize=_MIXED)
  shapes = jax.eval_shape(model.init, jax.random.key(0), _TOKENS)['params']
  found = {
      path: _arrays.encoding_of(value)
      for path, value in _quantized_base.quantized_nodes(shapes)
  }
  assert found == model.quantized
  with pytest.raises(
      ValueError, match='have no embedder.mm_input_projection.w. gemma'
  ):
    towers = multimodal.base_of_one_layer('Gemma4_31B')
    # Without images gemma makes no projection of the tower's.
    model = g4.nn.LoRA(rank=2, model=towers, quantize=_INT4)
    jax.eval_shape(model.init, jax.random.key(0), _TOKENS)
