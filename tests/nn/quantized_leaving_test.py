"""What leaves a quantised model has the base that LoRA was trained on."""

import functools

from gemma import peft
import jax
import jax.numpy as jnp
from kauldron import kd
import numpy as np
import pytest
import safetensors.numpy

from gemma4_lora import g4
from gemma4_lora.nn.branches import _quantized_base
from tests.lib import dequantized
from tests.lib import merged
from tests.lib import models
from tests.lib import random_params
from tests.lib import training

_TOKENS = np.random.default_rng(0).integers(3, 1000, (2, 6))
_INT4 = g4.quant.Int4(group_size=2)
_MIXED = (
    g4.quant.Int8('embeddings'),
    g4.quant.NF4(['mlp', 'o'], group_size=2, double=True),
    _INT4,
)


def _model(name='Gemma4_31B', *, quantize=_INT4, **settings):
  settings = {'rank': 2, 'alpha': 3, 'quantize': quantize} | settings
  return models.lora(name, cut=models.one_layer, **settings)


def _get(params, path):
  for key in path.split('.'):
    params = params[key]
  return params


@pytest.mark.parametrize(
    ('name', 'settings'),
    [
        ('Gemma4_E2B', {'quantize': _MIXED, 'use_dora': True}),
        (
            'Gemma4_26B_A4B',
            {'targets': ['k', 'experts'], 'modules_to_save': 'norms'},
        ),
    ],
)
def test_fused_is_the_dequantized_base_with_the_branches(name, settings):
  """`quantized_base_test` compares the logits of such a base with the model's."""
  model = _model(name, **settings)
  params = random_params.quantized(model)
  fused = g4.nn.fuse_params(model, params)
  bare = random_params.shapes(model.model)
  assert jax.tree.structure(fused) == jax.tree.structure(bare)

  dense = dequantized.tree(params, jnp.float32)
  want = training.flat(merged.base(model, dense))
  want |= {x.row.path: training.flat(dense)[x.path] for x in model.saved}
  for path, leaf in training.flat(fused).items():
    assert (leaf.shape, leaf.dtype) == (want[path].shape, want[path].dtype)
    np.testing.assert_allclose(
        leaf, want[path], rtol=1e-5, atol=1e-6, err_msg=path
    )


def test_sums_with_a_dequantized_weight_are_rounded_once():
  model = _model(base_dtype=jnp.bfloat16, targets=['up', 'down'])
  params = random_params.quantized(model)
  fused = g4.nn.fuse_params(model, params)
  for name, eqn, slot in (
      ('layer_0.mlp.up', 'dr,rf->fd', (1,)),
      ('layer_0.mlp.down', 'fr,rd->fd', ()),
  ):
    view = g4.nn.linears(model, params)[name]
    value = _get(params, view.row.path)
    dense = dequantized.array(value)
    assert view.base.dtype == jnp.bfloat16
    np.testing.assert_array_equal(view.base, jnp.bfloat16(dense[slot]))
    product = np.einsum(eqn, view.lora_a, view.lora_b)
    want = jnp.bfloat16(dense[slot] + np.float32(view.scale) * product)
    got = _get(fused, view.row.path)[slot]
    # float32 sums in another order may round otherwise, here and there.
    assert np.mean(np.asarray(got == want)) > 0.999
  table = params['embedder']['input_embedding']
  np.testing.assert_array_equal(
      fused['embedder']['input_embedding'],
      jnp.bfloat16(dequantized.array(table)),
  )


def test_what_is_dequantized_stays_where_its_codes_are():
  quantize = g4.quant.Int4(['mlp', 'embeddings'], group_size=2)
  model = _model(quantize=quantize, targets='mlp')
  params = random_params.quantized(model)
  sharding = kd.sharding.FSDPSharding(min_size_to_shard_mb=0)(params)
  params = jax.device_put(params, sharding)
  fused = g4.nn.fuse_params(model, params)
  for path in ('layer_0.mlp.gating_einsum', 'embedder.input_embedding'):
    got = _get(fused, path)
    assert not got.sharding.is_fully_replicated
    assert got.sharding == _get(params, path)['codes'].sharding


def test_unfusing_gives_the_dequantized_base():
  model = _model()
  params = random_params.quantized(model)
  fused = g4.nn.fuse_params(model, params)
  back = g4.nn.unfuse_params(model, fused, params)
  want = training.flat(dequantized.tree(params, jnp.float32))
  got = training.flat(back)
  assert got.keys() == want.keys()
  for path, x in got.items():
    np.testing.assert_allclose(x, want[path], atol=1e-5)


def test_check_says_what_fusing_changes():
  model = _model(targets=['q', 'k', 'down'])
  params = random_params.quantized(model)
  report = g4.nn.check(model, params)
  assert report.ok, report.problems
  assert report.logits['base_vs_adapter'] > 0.01
  assert report.logits['adapter_vs_fused'] < 1e-4
  view = g4.nn.linears(model, params)['layer_0.mlp.down']
  product = view.scale * np.asarray(view.lora_a @ view.lora_b)
  (row,) = [x for x in report.rows if x.name == 'layer_0.mlp.down']
  want = np.linalg.norm(product) / np.linalg.norm(view.base)
  np.testing.assert_allclose(row.relative, want, rtol=1e-5)
  sizes = [_get(params, path)['codes'].size for path in model.quantized]
  num, size = len(sizes), sum(sizes)
  many, few = 4 * size, size // 2 + size  # A bfloat16 for each two codes.
  (note,) = [x for x in report.notes if 'quantised' in x]
  assert (
      f'Fused, {num} leaves are float32: {many / 1e6:,.1f} MB, where they are'
      f' {few / 1e6:,.1f} MB.'
  ) in note


def test_check_finds_what_was_fused_into_the_released_weights():
  model = _model(targets=['q', 'down'])
  plain = random_params.make(model.clone(quantize=None))
  params = _quantized_base.quantize(plain, model.quantized)
  fused = g4.nn.fuse_params(model, params)
  assert g4.nn.check(model, params, fused=fused).ok
  wrong = g4.nn.fuse_params(model.clone(quantize=None), plain)
  (problem,) = [
      x
      for x in g4.nn.check(model, params, fused=wrong).problems
      if 'dequantised base' in x
  ]
  # Large branches, as random ones are, hide it in their own two weights.
  rest = len(model.quantized) - 2
  assert problem.startswith(f'{rest} fused weights are not the sum of')
  table = {
      **fused['embedder'],
      'input_embedding': plain['embedder']['input_embedding'],
  }
  report = g4.nn.check(model, params, fused=fused | {'embedder': table})
  assert 'embedder.input_embedding (by ' in str(report)
  kept = {
      **fused['embedder'],
      'input_embedding': params['embedder']['input_embedding'],
  }
  report = g4.nn.check(model, params, fused=fused | {'embedder': kept})
  assert 'embedder.input_embedding is quantised still' in str(report)


def test_peft_folder_is_that_of_the_plain_model(tmp_path):
  """And loads into a model around a quantised base."""
  model = _model('Gemma4_26B_A4B', targets=['q', 'experts'])
  params = random_params.quantized(model)
  plain = model.clone(quantize=None)
  lora = peft.split_params(params).lora
  for name, m in (('quantized', model), ('plain', plain)):
    g4.hf.save_peft(tmp_path / name, model=m, params=params)
  config, tensors = _read(tmp_path / 'quantized')
  want_config, want_tensors = _read(tmp_path / 'plain')
  assert config == want_config
  assert tensors.keys() == want_tensors.keys()
  for name, x in tensors.items():
    np.testing.assert_array_equal(x, want_tensors[name])
  assert g4.nn.check(model, lora, file=tmp_path / 'quantized').ok
  loaded = g4.hf.load_peft(tmp_path / 'quantized', model=model.model)
  again = loaded.model.clone(quantize=model.quantize)
  assert again.adapted == model.adapted
  jax.tree.map(np.testing.assert_array_equal, loaded.params, lora)


def _read(folder):
  return (
      (folder / 'adapter_config.json').read_text(),
      safetensors.numpy.load_file(folder / 'adapter_model.safetensors'),
  )


def test_a_mix_has_the_base_of_its_parts():
  one, two = _model(targets='q'), _model(targets=['q', 'k'])
  params = {m: random_params.quantized(m) for m in (one, two)}
  mix = g4.nn.LoRAMix({'a': (one, params[one]), 'b': (two, params[two])})
  base = peft.split_params(params[one]).original
  mixed = mix.params(base, 'a')
  assert mix.model.quantize == one.quantize
  kept = peft.split_params(mixed).original
  pairs = zip(jax.tree.leaves(kept), jax.tree.leaves(base), strict=True)
  assert all(x is y for x, y in pairs)
  # It takes a base that is quantised as its own.
  variables = {'params': mixed}
  jax.eval_shape(functools.partial(mix.model.apply, variables), _TOKENS)
  with pytest.raises(ValueError, match=r"'b' has quantize=None, and the first"):
    g4.nn.LoRAMix(
        {
            'a': (one, params[one]),
            'b': (two.clone(quantize=None), params[two]),
        }
    )


def test_fusing_a_base_that_is_not_quantized():
  model = _model()
  params = random_params.make(model.clone(quantize=None))
  with pytest.raises(ValueError, match='parameters not quantised'):
    g4.nn.fuse_params(model, params)


def test_fusing_with_a_model_that_forgot_it():
  model = _model()
  with pytest.raises(ValueError, match='model not quantised'):
    g4.nn.fuse_params(
        model.clone(quantize=None), random_params.quantized(model)
    )
