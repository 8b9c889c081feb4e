"""Parts of the base that are trained in full beside LoRA."""

import dataclasses
import functools
import re

import flax
from gemma import peft
import jax
import jax.numpy as jnp
from kauldron import kd
import numpy as np
import pytest

from gemma4_lora import g4
from tests.lib import forward
from tests.lib import models
from tests.lib import random_params
from tests.lib import training

_TOKENS = jnp.arange(1, 9)[None]
# Neither E4B nor 31B has a linear that these have not.
_VARIANTS = ['Gemma4_E2B', 'Gemma4_26B_A4B']
# Of each kind: a norm, an embedding, a scalar, one of two packed projections,
# a whole linear.
_SOME = [
    'final_norm',
    'layer_*.pre_attention_norm',
    'embedder.input_embedding',
    'scalars',
    g4.targets.Rule(['k', 'gate'], layers=0),
    g4.targets.Rule('down', layers=1),
]


def _lora(name='Gemma4_E2B', *, cut=models.shallow, **kwargs):
  kwargs = {'modules_to_save': _SOME} | kwargs
  return g4.nn.LoRA(rank=2, model=models.base(name, cut=cut), **kwargs)


def _fresh(model):
  """Parameters whose copies are the base's values, as init leaves them."""
  params = training.flat(random_params.make(model))
  for part in model.saved:
    params[part.path] = jnp.asarray(_replaced(params, part), jnp.float32)
  return flax.traverse_util.unflatten_dict(params, sep='.')


def _replaced(params, part):
  """What of the base a copy stands for."""
  base = np.asarray(params[part.row.path])
  if part.row.slot_axis is None:
    return base
  return np.take(base, part.row.slot, part.row.slot_axis)


@pytest.mark.parametrize('name', _VARIANTS)
def test_copies_start_as_the_base_in_float32(name):
  model = _lora(name)
  assert len(model.saved) > 8

  @jax.jit  # Compiles only what it returns.
  def init(key):
    flat = training.flat(model.init(key, _TOKENS)['params'])
    paths = {
        path for part in model.saved for path in (part.path, part.row.path)
    }
    return {path: flat[path] for path in paths}

  params = init(jax.random.key(0))
  for part in model.saved:
    copy = params[part.path]
    assert copy.dtype == jnp.float32
    assert copy.shape == part.shape
    base = _replaced(params, part).astype(np.float32)
    np.testing.assert_array_equal(copy, base)
  adapted = {(x.row.module_path, x.row.projection) for x in model.adapted}
  saved = {(x.row.module_path, x.row.projection) for x in model.saved}
  assert not adapted & saved


# All of one layer.
_of_one_layer = functools.partial(
    _lora, cut=models.one_layer, modules_to_save=_SOME[:-1]
)


def test_the_model_is_the_base_with_the_copies_in_place():
  """Against the bare model, its leaves replaced by hand, LoRA's B at zero."""
  model = _of_one_layer()
  params = _fresh(model)
  flat = {
      path: 0 * x if path.endswith('.b') else x
      for path, x in training.flat(params).items()
  }
  rng = np.random.default_rng(0)
  for part in model.saved:
    flat[part.path] += 0.3 * rng.standard_normal(part.shape, np.float32)
  replaced = dict(flat)
  for part in model.saved:
    path, new = part.row.path, np.asarray(flat[part.path])
    base = np.array(replaced[path])
    if part.row.slot_axis is None:
      base = new.astype(base.dtype)
    else:
      index = [slice(None)] * base.ndim
      index[part.row.slot_axis] = part.row.slot
      base[tuple(index)] = new
    replaced[path] = jnp.asarray(base)

  def nested(flat):
    return flax.traverse_util.unflatten_dict(flat, sep='.')

  expected = forward.logits(
      model.model, peft.split_params(nested(replaced)).original, _TOKENS
  )
  actual = forward.logits(model, nested(flat), _TOKENS)
  np.testing.assert_array_equal(actual, expected)
  original = peft.split_params(params).original
  untouched = forward.logits(model.model, original, _TOKENS)
  assert np.any(actual != untouched)


def test_gradients_reach_copies_and_not_what_they_replace():
  model = _of_one_layer()
  flat = training.flat(_fresh(model))
  paths = {p for part in model.saved for p in (part.path, part.row.path)}

  def loss(some, rest):
    params = flax.traverse_util.unflatten_dict(some | rest, sep='.')
    logits = model.apply({'params': params}, _TOKENS).logits
    return jnp.sum(jnp.square(logits.astype(jnp.float32)))

  grads = jax.jit(jax.grad(loss))(
      {path: flat[path] for path in paths},
      {path: x for path, x in flat.items() if path not in paths},
  )
  for part in model.saved:
    assert np.any(grads[part.path]), part.path
    assert not np.any(_replaced(grads, part)), part.row.path


def test_copies_follow_the_restored_base(tmp_path):
  base = g4.testing.make_checkpoint(
      models.base('Gemma4_E2B'), tmp_path / 'released', seed=3
  )
  model = _lora()
  plain = g4.ckpts.PartialLoad(path=tmp_path / 'released')
  for load in (plain, g4.ckpts.SkipLoRA4(wrapped=plain)):
    params = _fresh(model)
    before = np.asarray(params['final_norm']['lora']['scale'])
    params = training.flat(load.transform(_State(params=params)).params)
    for part in model.saved:
      want = _replaced(training.flat(base), part).astype(np.float32)
      np.testing.assert_array_equal(params[part.path], want)
    assert np.any(params['final_norm.lora.scale'] != before)


def test_copies_that_were_trained_stay(tmp_path):
  g4.testing.make_checkpoint(
      models.base('Gemma4_E2B'), tmp_path / 'released', seed=3
  )
  params = _fresh(_lora())
  params['final_norm']['lora']['scale'] += 1
  trained = params['final_norm']['lora']['scale']
  load = g4.ckpts.SkipLoRA4(
      wrapped=g4.ckpts.PartialLoad(path=tmp_path / 'released')
  )
  restored = load.transform(_State(params=params)).params
  np.testing.assert_array_equal(
      restored['final_norm']['lora']['scale'], trained
  )


@dataclasses.dataclass(frozen=True)
class _State:
  params: dict


def test_what_is_copied_gets_no_lora():
  model = g4.nn.LoRA(
      rank=2, model=models.base('Gemma4_E2B'), modules_to_save='mlp'
  )
  assert {x.row.group for x in model.adapted} == {
      'attention',
      'per_layer_inputs',
  }


def test_counts_and_names_in_the_summary():
  model = _lora()
  summary = g4.nn.summary(model)
  flat = training.flat(random_params.make(model))
  assert summary.trainable == sum(
      x.size for path, x in flat.items() if 'lora' in path.split('.')
  )
  text = str(summary)
  assert re.search(
      r'^input_embedding +embedder.input_embedding .* full', text, re.M
  )
  assert re.search(
      r'^pre_attention_norm +layer_\*.pre_att.* full .*4: 0-3$', text, re.M
  )
  assert re.search(r'\d+ projections and \d+ parts in full, ', text)


def test_kauldron_selects_copies_and_lora_alike():
  params = random_params.make(_lora())
  mask = training.flat(kd.optim.select('lora')(params))
  assert all(mask[part.path] for part in _lora().saved)
  assert not any(mask[part.row.path] for part in _lora().saved)


@pytest.mark.parametrize(
    ('names', 'expected'),
    [
        ('norm', ['final_norm']),
        ('embed_tokens', ['embedder.input_embedding']),
        (
            'layers.2.input_layernorm',
            ['layer_2.pre_attention_norm'],
        ),
        ('language_model.layers.1.self_attn.q_proj', ['layer_1.attn.q']),
        (g4.targets.Rule('norms', layers=-1), None),
        (
            g4.targets.Rule('key_norm'),
            ['layer_0.attn.key_norm', 'layer_1.attn.key_norm'],
        ),
    ],
)
def test_names(names, expected):
  """Ours and Hugging Face's; the key norms of KV-shared layers are dead."""
  saved = _lora(modules_to_save=names).saved
  found = [part.row.name for part in saved]
  if expected is None:
    assert len(found) == 6 and all(n.startswith('layer_3.') for n in found)
    assert 'layer_3.attn.key_norm' not in found
  else:
    assert found == expected


def test_a_bare_name_of_hugging_face_means_no_leaf_of_the_audio_tower():
  """Its convolutions have a `norm` each, as the text tower has."""
  model = models.base('Gemma4_E2B', text_only=False)
  lora = g4.nn.LoRA(rank=2, model=model, modules_to_save='norm')
  assert [part.row.name for part in lora.saved] == ['final_norm']
  lora = g4.nn.LoRA(rank=2, model=model, modules_to_save='layer1.norm')
  (saved,) = lora.saved
  assert saved.row.name == 'audio_encoder.feature.norm_1'


def test_norms_of_the_vision_tower():
  model = models.base('Gemma4_E2B', text_only=False)
  rule = g4.targets.Rule('norms', tower='vision')
  lora = g4.nn.LoRA(rank=2, model=model, modules_to_save=rule)
  assert len(lora.saved) == 6
  text = g4.nn.LoRA(rank=2, model=model, modules_to_save='norms')
  assert {part.row.tower for part in text.saved} == {'text'}


@pytest.mark.parametrize(
    ('rules', 'match'),
    [
        ('nroms', "modules_to_save='nroms' matches no part .* 'norms'"),
        (g4.targets.Rule('norms', rank=2), 'in full has no rank'),
        (g4.targets.Rule('norms', alpha=2), 'in full has no alpha'),
        (g4.targets.Rule('norms', dropout=0.5), 'in full has no dropout'),
        ('layer_3.attn.key_norm', 'names what the model never uses'),
        (3, r'modules_to_save= takes strings and rules'),
        ('text', r'leaves nothing for LoRA'),
    ],
)
def test_bad_rules(rules, match):
  with pytest.raises(ValueError, match=match):
    _lora(modules_to_save=rules)


def test_norms_in_targets_are_an_error_that_names_the_argument():
  with pytest.raises(ValueError, match='norms.* in modules_to_save='):
    g4.nn.LoRA(rank=2, model=models.base('Gemma4_E2B'), targets='final_norm')


def test_copies_missing_from_the_parameters():
  params = random_params.make(_lora(modules_to_save=()))
  with pytest.raises(ValueError, match=r'no layer_0.pre_attention_norm.lora.s'):
    _lora(modules_to_save='layer_0.pre_attention_norm').apply(
        {'params': params}, _TOKENS
    )


def test_copies_that_nothing_would_read():
  params = random_params.make(_lora(modules_to_save='final_norm'))
  with pytest.raises(ValueError, match=r'be ignored: final_norm.lora.scale'):
    _lora(modules_to_save=()).apply({'params': params}, _TOKENS)
