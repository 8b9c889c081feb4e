"""Branches added into the base weights: the same numbers, without LoRA."""

from gemma import peft
import jax
import jax.numpy as jnp
from kauldron import kd
import numpy as np
import pytest

from gemma4_lora import g4
from tests.lib import forward
from tests.lib import merged
from tests.lib import models
from tests.lib import multimodal
from tests.lib import random_params
from tests.lib import training

_TOKENS = jnp.asarray(np.random.default_rng(0).integers(3, 1000, (2, 12)))


def _lora(name='Gemma4_E2B', *, cut=models.one_layer, **kwargs):
  return models.lora(name, cut=cut, rank=3, alpha=6, **kwargs)


def _check_fused(model, params):
  """Weights, against those of the formula; that has LoRA's logits elsewhere."""
  fused = g4.nn.fuse_params(model, params)
  want = training.flat(merged.base(model, params))
  original, _ = peft.split_params(params)
  assert jax.tree.structure(fused) == jax.tree.structure(original)
  jax.tree.map(_check_alike, fused, original)
  adapted = {linear.row.path for linear in model.adapted}
  flat, old = training.flat(fused), training.flat(original)
  for path, leaf in flat.items():
    if path in adapted:
      assert np.abs(leaf - old[path]).max() > 1e-2, path
      np.testing.assert_allclose(
          leaf, want[path], rtol=1e-5, atol=1e-6, err_msg=path
      )
    else:
      assert leaf is old[path], path  # Not even copied.


def _check_alike(new, old):
  assert (new.shape, new.dtype, new.sharding) == (
      old.shape,
      old.dtype,
      old.sharding,
  )


@pytest.mark.parametrize(
    ('name', 'kwargs'),
    [
        # rsLoRA's scale and DoRA; each weight of a layer.
        ('Gemma4_E2B', {'use_rslora': True, 'use_dora': True}),
        ('Gemma4_26B_A4B', {'targets': ['text', 'experts', 'router']}),
        # Some of packed weights, with ranks of their own.
        (
            'Gemma4_E2B',
            {'targets': [g4.targets.Rule('q', rank=5, alpha=1.0), 'v', 'down']},
        ),
        ('Gemma4_26B_A4B', {'targets': 'expert_up'}),
    ],
)
def test_adds_each_branch_to_its_weight(name, kwargs):
  model = _lora(name, **kwargs)
  _check_fused(model, random_params.like_init(model))


def test_adds_branches_to_towers():
  """Each layer of a stacked weight; clip bounds stay as they are."""
  base = multimodal.base_of_one_layer('Gemma4_E2B', dtype=jnp.float32)
  targets = ['text', 'vision', 'audio', 'multimodal_projections']
  model = g4.nn.LoRA(rank=2, targets=targets, use_dora=True, model=base)
  _check_fused(model, random_params.with_towers(model))


def test_fused_equals_unfused():
  """rsLoRA's scale, DoRA, and parts in full beside them."""
  model = _lora(
      cut=models.shallow,
      use_rslora=True,
      use_dora=True,
      modules_to_save=['norms', g4.targets.Rule(['k', 'up'], layers=0)],
  )
  params = random_params.like_init(model)
  fused = g4.nn.fuse_params(model, params)
  expected = forward.logits(model, params, _TOKENS)
  actual = forward.logits(model.model, fused, _TOKENS)
  # Of all logits: the largest of 18,000 errors is another on another CPU.
  error = np.linalg.norm(actual - expected)
  assert error <= 5e-6 * np.linalg.norm(expected)
  # LoRA does change the model, and fusing is what changed the base.
  original, _ = peft.split_params(params)
  without = forward.logits(model.model, original, _TOKENS)
  assert np.max(np.abs(without - expected)) > 1e-2
  assert jax.tree.structure(fused) == jax.tree.structure(original)
  jax.tree.map(_check_alike, fused, original)


def test_a_start_that_changes_the_base():
  model = _lora(init_lora_weights='pissa', targets=['k', 'down'])
  params = random_params.pending(random_params.like_init(model))
  original = peft.split_params(params).original
  params = g4.nn.init_from_base(model, params)
  fused = g4.nn.fuse_params(model, params)
  # Nothing was trained: the base itself comes back.
  jax.tree.map(
      lambda new, old: np.testing.assert_allclose(new, old, atol=1e-6),
      fused,
      original,
  )


def test_sums_are_rounded_once():
  """Two branches' worth of float32 sums, in a bfloat16 weight."""
  model = _lora(base_dtype=jnp.bfloat16, targets=['k', 'v'])
  params = random_params.like_init(model)
  fused = g4.nn.fuse_params(model, params)
  views = g4.nn.linears(model, params)
  for slot, projection in enumerate('kv'):
    view = views[f'layer_0.attn.{projection}']
    product = np.einsum('dr,rkh->kdh', view.lora_a, view.lora_b)
    expected = np.asarray(view.base, np.float32) + view.scale * product
    actual = fused['layer_0']['attn']['kv_einsum']['w'][slot]
    error = np.abs(np.asarray(actual, np.float32) - expected)
    assert np.all(error <= np.abs(expected) * 2.0**-8)


def test_keeps_the_sharding():
  model = _lora('Gemma4_31B', targets='mlp')
  params = random_params.like_init(model)
  mlp = params['layer_0']['mlp']
  sharding = kd.sharding.FSDPSharding(min_size_to_shard_mb=0)(mlp)
  mlp = params['layer_0']['mlp'] = jax.device_put(mlp, sharding)
  gating = g4.nn.fuse_params(model, params)['layer_0']['mlp']['gating_einsum']
  assert not gating.sharding.is_fully_replicated
  assert gating.sharding == mlp['gating_einsum'].sharding


def _set(params, path, value):
  *scopes, last = path.split('.')
  for key in scopes:
    params = params[key]
  params[last] = value


# -------------------------------- Unfuse ----------------------------------


@pytest.mark.parametrize('name', ['Gemma4_E2B', 'Gemma4_26B_A4B'])
def test_unfuse_undoes_fuse(name):
  kwargs = {'targets': ['text', 'experts']} if name.endswith('A4B') else {}
  model = _lora(name, **kwargs)
  params = random_params.make(model)
  fused = g4.nn.fuse_params(model, params)
  back = g4.nn.unfuse_params(model, fused, params)
  assert jax.tree.structure(back) == jax.tree.structure(params)
  jax.tree.map(
      lambda new, old: np.testing.assert_allclose(new, old, atol=1e-5),
      back,
      params,
  )


# -------------------------------- Errors ----------------------------------


def test_fusing_twice():
  model = _lora()
  fused = g4.nn.fuse_params(model, random_params.make(model))
  with pytest.raises(ValueError, match='no LoRA leaf. They are fused already'):
    g4.nn.fuse_params(model, fused)


def test_fusing_without_lora():
  model = models.base('Gemma4_E2B')
  with pytest.raises(ValueError, match='takes a g4.nn.LoRA. Got: Gemma4_E2B'):
    g4.nn.fuse_params(model, random_params.make(model))


def test_fusing_parameters_of_other_targets():
  params = random_params.make(_lora(targets='q'))
  with pytest.raises(ValueError, match='params has no .*lora.v'):
    g4.nn.fuse_params(_lora(targets=['q', 'v']), params)


def test_fusing_less_than_there_is():
  """Branches that would be dropped without a word."""
  params = random_params.make(_lora(targets=['q', 'v']))
  with pytest.raises(ValueError, match=r'ignored: .*lora.v'):
    g4.nn.fuse_params(_lora(targets='q'), params)


def test_unfusing_what_is_not_fused():
  model = _lora()
  params = random_params.make(model)
  with pytest.raises(ValueError, match='fused has LoRA leaves'):
    g4.nn.unfuse_params(model, params, params)


@pytest.mark.parametrize(
    'settings', [{'use_dora': True}, {'modules_to_save': 'final_norm'}]
)
def test_unfusing_what_forgot_its_base(settings):
  model = _lora(**settings)
  params = random_params.make(model)
  fused = g4.nn.fuse_params(model, params)
  with pytest.raises(ValueError, match='the base cannot be recovered'):
    g4.nn.unfuse_params(model, fused, params)
