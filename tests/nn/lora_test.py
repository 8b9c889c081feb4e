"""The LoRA wrapper: maths, parameters, and the traps of `nn.jit`."""

import dataclasses
import functools
import inspect

import flax
from flax import linen as nn
from gemma import gm
from gemma import peft
import jax
import jax.numpy as jnp
from kauldron import kd
from kauldron import kontext
import numpy as np
import pytest

from gemma4_lora import g4
from tests.lib import merged
from tests.lib import models
from tests.lib import random_params
from tests.lib import training

_TOKENS = jnp.asarray(np.random.default_rng(0).integers(3, 1000, (2, 12)))


_thin = functools.partial(models.base, cut=models.one_layer)


def _logits(model, params, **kwargs):
  return model.apply({'params': params}, _TOKENS, **kwargs).logits


def _program(model, params, **kwargs):
  """What the model computes, as text."""
  run = functools.partial(_logits, model, **kwargs)
  return str(jax.make_jaxpr(run)(params))


# E4B has the features of E2B, and 26B_A4B has 31B's attention, and its dense MLP
# beside the experts.
@pytest.mark.parametrize(
    ('name', 'targets'),
    [
        ('Gemma4_E2B', ['text']),
        ('Gemma4_26B_A4B', ['text', 'router', 'experts']),
    ],
    ids=['Gemma4_E2B', 'Gemma4_26B_A4B'],
)
def test_equals_the_model_with_merged_weights(name, targets):
  """Of every projection at once, in float32, B far from zero.

  And gradients reach every A and B.
  """
  base = _thin(name, dtype=jnp.float32)
  model = g4.nn.LoRA(rank=3, alpha=6, targets=targets, model=base)
  params = random_params.make(model)
  original, lora = peft.split_params(params)

  def loss(lora):
    logits = _logits(model, peft.merge_params(original, lora))
    return jnp.mean(jax.nn.log_softmax(logits)[..., 7]), logits

  grads, got = jax.jit(jax.grad(loss, has_aux=True))(lora)
  fixed = g4.nn.RouterFix(model=base)
  plain = jax.jit(lambda params: _logits(fixed, params))
  want = np.asarray(plain(merged.base(model, params)))
  assert np.abs(want - plain(original)).max() > 1.0
  np.testing.assert_allclose(got, want, atol=2e-3)
  for path, grad in training.flat(grads).items():
    assert np.all(np.isfinite(grad)), path
    assert np.any(grad), path


@pytest.mark.parametrize(
    ('name', 'jit'), [('Gemma4_E2B', True), ('Gemma4_31B', False)]
)
def test_zero_b_equals_the_base_model_bitwise(name, jit):
  """With experts: `experts_test`."""
  base = _thin(name)
  model = g4.nn.LoRA(rank=3, model=base)
  params = jax.tree_util.tree_map_with_path(
      lambda path, x: jnp.zeros_like(x) if path[-1].key == 'b' else x,
      random_params.make(model),
  )
  wrap = jax.jit if jit else lambda f: f
  got = wrap(lambda p: _logits(model, p))(params)
  want = wrap(lambda p: _logits(base, p))(peft.split_params(params).original)
  np.testing.assert_array_equal(got, want)


@functools.cache
def _initialised(model):
  """The attention of its first layer."""

  @jax.jit  # Compiles only what it returns.
  def init(key):
    return model.init(key, _TOKENS)['params']['layer_0']['attn']

  return init(jax.random.key(0))


def test_signature_has_the_fields():
  """Which `help` shows first; flax's own fields are for modules in modules."""
  names = [*inspect.signature(g4.nn.LoRA).parameters]
  assert names[:4] == ['model', 'rank', 'alpha', 'targets']
  assert not {'parent', 'name', 'args'} & set(names)


def test_init_gives_the_base_leaves_of_the_plain_model():
  """Same paths, shapes, dtypes and values, and B is zero."""
  model = g4.nn.LoRA(rank=64, model=_thin())
  shapes = jax.eval_shape(model.init, jax.random.key(0), _TOKENS)['params']
  assert shapes == random_params.shapes(model)
  assert peft.split_params(shapes).original == random_params.shapes(model.model)
  original, lora = peft.split_params(_initialised(model))
  want = _initialised(model.model)
  jax.tree.map(np.testing.assert_array_equal, original, want)
  for path, leaf in training.flat(lora).items():
    assert leaf.dtype == jnp.float32, path
    if path.endswith('.b'):
      assert not np.any(leaf), path


def test_a_is_kaiming_uniform_over_the_whole_input_side():
  """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): for o, fan_in is heads * head size."""
  attention = _initialised(g4.nn.LoRA(rank=64, model=_thin()))
  a = attention['attn_vec_einsum']['lora']['o']['a']
  assert a.shape == (8, 16, 64)
  bound = 1 / np.sqrt(128)
  assert 0.98 * bound < np.abs(a).max() <= bound
  assert abs(np.std(a) - bound / np.sqrt(3)) < 0.02 * bound


def test_leaves_stand_where_the_docs_say():
  model = g4.nn.LoRA(rank=3, model=models.base('Gemma4_E2B'))
  params = jax.eval_shape(model.init, jax.random.key(0), _TOKENS)['params']
  assert set(params['layer_0']['attn']['kv_einsum']) == {'w', 'lora'}
  lora = params['layer_0']['attn']['kv_einsum']['lora']
  assert {k: {n: x.shape for n, x in v.items()} for k, v in lora.items()} == {
      'k': {'a': (32, 3), 'b': (3, 1, 8)},
      'v': {'a': (32, 3), 'b': (3, 1, 8)},
  }
  assert set(params['layer_0']['mlp']) == {'gating_einsum', 'linear', 'lora'}
  assert set(params['layer_0']['mlp']['lora']) == {'gate', 'up', 'down'}
  # Dead: layer 3 reads layer 1's keys and values.
  assert set(params['layer_3']['attn']['kv_einsum']) == {'w'}
  mask = kd.optim.select('lora.v')(params)
  assert sum(jax.tree.leaves(mask)) == 2 * 2  # Two live layers, A and B.


# ------------------------------- One process -------------------------------


def _read_by(model, params):
  """Parameters without the LoRA leaves of others, which would be an error."""
  known = model.lora_shapes
  read = {
      path: leaf
      for path, leaf in training.flat(params).items()
      if '.lora.' not in path or path in known
  }
  return flax.traverse_util.unflatten_dict(read, sep='.')


def test_wrappers_that_differ_only_in_settings_differ():
  """`nn.jit` keeps one program per module's class and fields."""
  base = _thin(dtype=jnp.float32)
  model = g4.nn.LoRA(rank=4, alpha=8, targets=['q', 'o'], model=base)
  params = random_params.make(model)
  first = _logits(model, params)
  assert np.abs(_logits(model.clone(alpha=16), params) - first).max() > 1e-3
  np.testing.assert_array_equal(_logits(model, params), first)

  def program(**changes):
    changed = model.clone(**changes)
    return _program(changed, _read_by(changed, params))

  others = [
      program(alpha=12),
      program(use_rslora=True),
      program(targets=['q']),
      program(targets=['q'], alpha=3),
  ]
  assert len({program(), *others}) == 5
  assert program(targets='q', alpha=8) == others[2]


def test_init_of_wrappers_that_differ_only_in_settings_differs():
  base = models.base('Gemma4_31B')

  def leaves(model):
    shapes = jax.eval_shape(model.init, jax.random.key(0), _TOKENS)
    params = shapes['params']
    return {
        path: (x.shape, x.dtype)
        for path, x in training.flat(params).items()
        if '.lora.' in path
    }

  first = leaves(g4.nn.LoRA(rank=2, targets='q', model=base))
  assert {
      shape[-1] for path, (shape, _) in first.items() if path[-1] == 'a'
  } == {2}
  wide = leaves(g4.nn.LoRA(rank=5, targets='q', model=base))
  assert {
      shape[-1] for path, (shape, _) in wide.items() if path[-1] == 'a'
  } == {5}
  half = leaves(g4.nn.LoRA(rank=2, targets='q', dtype=jnp.bfloat16, model=base))
  assert {dtype for _, dtype in half.values()} == {jnp.dtype(jnp.bfloat16)}
  other = leaves(g4.nn.LoRA(rank=2, targets='o', model=base))
  assert not set(other) & set(first)
  assert not leaves(base)  # Nor does the plain model get leaves by then.


def test_two_of_one_model_under_one_parent():
  """Rows are found relative to the model, wherever it stands."""

  class Pair(nn.Module):
    policy: nn.Module
    anchor: nn.Module

    def __call__(self, tokens):
      return self.policy(tokens).logits, self.anchor(tokens).logits

  model = g4.nn.LoRA(rank=2, model=_thin())
  pair = Pair(policy=model, anchor=_thin())
  params = random_params.make(pair)
  assert set(training.flat(params['policy'])) > set(
      training.flat(params['anchor'])
  )
  policy, anchor = pair.apply({'params': params}, _TOKENS)
  np.testing.assert_array_equal(policy, _logits(model, params['policy']))
  np.testing.assert_array_equal(anchor, _logits(model.model, params['anchor']))


# --------------------------------- Dtypes ----------------------------------


def test_float32_masters_do_not_promote_activations():
  model = g4.nn.LoRA(rank=2, model=_thin('Gemma4_E2B'))
  params = random_params.make(model)
  out, state = jax.eval_shape(
      lambda params: model.apply(
          {'params': params},
          _TOKENS,
          return_hidden_states=True,
          capture_intermediates=True,
      ),
      params,
  )
  assert out.hidden_states.dtype == jnp.bfloat16
  blocks = {
      k: v for k, v in state['intermediates'].items() if k.startswith('layer_')
  }
  dtypes = {x.dtype for x in jax.tree.leaves(blocks)}
  assert blocks and dtypes == {jnp.dtype(jnp.bfloat16)}


# --------------------------------- Dropout ----------------------------------


def test_dropout_is_off_unless_training():
  model = g4.nn.LoRA(rank=2, dropout=0.5, model=_thin())
  params = random_params.make(model)

  def program(is_training, model=model):
    rngs = {'dropout': jax.random.key(0)}
    return _program(model, params, rngs=rngs, is_training_property=is_training)

  assert program(None) == program(None, model.clone(dropout=0.0))
  trained = program(True)
  assert 'random_bits' in trained
  # The order matters: `nn.jit` does not see the training property.
  assert program(False) == program(False, model.clone(dropout=0.0))
  assert program(True) == trained

  @jax.jit
  def run(seed):
    rngs = {'dropout': jax.random.key(seed)}
    return _logits(model, params, rngs=rngs, is_training_property=True)

  np.testing.assert_array_equal(run(0), run(0))
  assert np.any(run(0) != run(1))


def test_dropout_scales_what_it_keeps():
  """The mean over many masks is the branch without dropout."""
  model = g4.nn.LoRA(
      rank=2, targets='layer_0.mlp.down', model=_thin(dtype=jnp.float32)
  )
  params = random_params.make(model)

  def branch(model, key):
    _, state = model.apply(
        {'params': params},
        _TOKENS,
        rngs={'dropout': key},
        is_training_property=True,
        capture_intermediates=lambda m, _: m.name == 'mlp',
    )
    return state['intermediates']['layer_0']['mlp']['__call__'][0]

  @jax.jit
  def both(keys):
    off = branch(model, keys[0])
    base = branch(model.clone(alpha=1e-30), keys[0])
    dropped = model.clone(dropout=0.4)
    return off, base, jax.lax.map(lambda key: branch(dropped, key), keys)

  keys = jax.random.split(jax.random.key(0), 400)
  off, base, runs = map(np.asarray, both(keys))
  spread = np.std(runs - base, axis=0).mean()
  assert spread > 0
  error = np.abs(np.mean(runs, axis=0) - off).mean()
  assert error < 4 * spread / np.sqrt(len(keys))


# ------------------------------ Use as a model ------------------------------


def test_forwards_what_samplers_read():
  base = models.base('Gemma4_E2B')
  model = g4.nn.LoRA(rank=2, model=base)
  assert model.INFO.tokenizer_version == 4
  assert model.config is base.config
  cache = model.init_cache(batch_size=2, dtype=jnp.bfloat16, cache_length=16)
  assert cache['layer_0']['k'].shape == (2, 16, 1, 8)


def test_keys_are_those_of_the_model():
  model = g4.nn.LoRA(rank=2, model=models.base('Gemma4_E2B'))
  assert kontext.get_keypaths(model)['tokens'] == 'batch.input'


def test_without_tokens_the_error_says_what_to_write():
  model = g4.nn.LoRA(rank=2, model=g4.testing.Gemma4_E2B())
  with pytest.raises(ValueError, match=r'Write Gemma4_E2B\(tokens="batch.inp'):
    kontext.get_keypaths(model)


def test_equal_settings_are_equal_and_hash_alike():
  """Samplers pass the model to `jax.jit` as a static argument."""
  base = models.base('Gemma4_E2B')
  model = g4.nn.LoRA(rank=2, targets=['q'], model=base)
  same = g4.nn.LoRA(rank=2, targets=('q',), model=base)
  assert model == same and hash(model) == hash(same)
  assert model != model.clone(alpha=3)


def test_missing_lora_leaves_are_not_drawn_anew():
  """Kauldron applies with every collection mutable."""
  model = g4.nn.LoRA(rank=2, model=_thin())
  params = peft.split_params(random_params.make(model)).original
  with pytest.raises(ValueError, match=r'layer_0.attn.q_einsum.lora.q.a'):
    model.apply({'params': params}, _TOKENS, mutable=True)


class _Shallower(g4.testing.Gemma4_31B):
  """Declares more layers than it runs."""

  def setup(self):
    super().setup()
    self.blocks = self.blocks[:1]


def test_adapted_linears_that_get_no_leaves_are_an_error():
  """At every init, though `nn.jit` traces only at the first."""
  base = models.shallow(_Shallower(tokens='batch.input'))
  model = g4.nn.LoRA(rank=2, targets=['q', 'gate'], model=base)
  for _ in range(2):
    with pytest.raises(
        ValueError,
        match=r'no LoRA leaves for 2 of 4 .*attn\.q.*never calls them',
    ):
      jax.eval_shape(model.init, jax.random.key(0), _TOKENS)
  params = random_params.make(model.clone(targets=['layer_0.attn.q']))
  assert set(training.flat(params['layer_0']['attn'])) >= {'q_einsum.lora.q.a'}


# -------------------------------- Bad input ---------------------------------


@pytest.mark.parametrize('rank', [0, -1, 2.5, True, None])
def test_rank_must_be_a_positive_integer(rank):
  with pytest.raises(ValueError, match='rank= takes a positive integer'):
    g4.nn.LoRA(rank=rank, model=models.base('Gemma4_E2B'))


@pytest.mark.parametrize(
    'alpha', [0, 0.0, float('nan'), -1e999, 1e300, 1e-300, '8', True]
)
def test_alpha_must_be_finite_and_not_0(alpha):
  with pytest.raises(ValueError, match='alpha= takes a finite number other th'):
    g4.nn.LoRA(rank=2, alpha=alpha, model=models.base('Gemma4_E2B'))


@pytest.mark.parametrize(
    ('name', 'value', 'match'),
    [
        (
            'use_rslora',
            'false',
            "use_rslora= takes True or False. Got: 'false'",
        ),
        ('use_dora', 'yes', 'use_dora= takes True or False'),
        ('logits_in_training', None, 'logits_in_training= takes True or'),
        ('dtype', None, 'dtype= takes a floating dtype. Got: None'),
        ('init_lora_weights', True, 'init_lora_weights= takes one of .*: True'),
        ('init_lora_weights', None, 'init_lora_weights= takes one of .*: None'),
    ],
)
def test_words_are_not_taken_for_true(name, value, match):
  with pytest.raises(ValueError, match=match):
    g4.nn.LoRA(**{'rank': 2, 'model': models.base('Gemma4_E2B'), name: value})


@pytest.mark.parametrize('dropout', [-0.1, 1.0, 30])
def test_dropout_must_be_a_rate(dropout):
  with pytest.raises(ValueError, match=r'dropout= takes a rate in \[0, 1\)'):
    g4.nn.LoRA(rank=2, dropout=dropout, model=models.base('Gemma4_E2B'))


def test_dtype_must_be_floating():
  with pytest.raises(ValueError, match='dtype= takes a floating dtype'):
    g4.nn.LoRA(rank=2, dtype=jnp.int8, model=models.base('Gemma4_E2B'))


def test_a_target_that_matches_nothing():
  with pytest.raises(ValueError, match="Did you mean 'attention'"):
    g4.nn.LoRA(rank=2, targets='atention', model=models.base('Gemma4_E2B'))


def test_a_target_that_only_other_models_have():
  with pytest.raises(ValueError, match='matches no linear of this model'):
    g4.nn.LoRA(
        rank=2, targets='per_layer_inputs', model=models.base('Gemma4_31B')
    )


@pytest.mark.parametrize('wrapper', [g4.nn.LoRA, gm.nn.LoRA])
def test_lora_around_lora(wrapper):
  inner = wrapper(rank=2, model=models.base('Gemma4_E2B'))
  with pytest.raises(ValueError, match='has LoRA already|with LoRA already'):
    g4.nn.LoRA(rank=2, model=inner)


def test_a_model_that_is_not_gemma_4():
  with pytest.raises(ValueError, match='Got: gemma.gm.nn._gemma.Gemma3_1B'):
    g4.nn.LoRA(rank=2, model=gm.nn.Gemma3_1B(tokens='batch.input'))


def test_router_fix_within_lora_is_refused():
  with pytest.raises(ValueError, match='corrects the router by itself'):
    g4.nn.LoRA(rank=2, model=g4.nn.RouterFix(model=models.base('Gemma4_E2B')))


def test_config_of_a_subclass_is_kept():
  """The key that `nn.jit` sees is added to whatever class the config has."""
  base = _thin()
  config_cls = dataclasses.make_dataclass(
      'MyConfig', [('mine', int, 3)], bases=(type(base.config),), frozen=True
  )
  fields = {
      f.name: getattr(base.config, f.name)
      for f in dataclasses.fields(base.config)
  }
  model = g4.nn.LoRA(rank=2, model=base.clone(config=config_cls(**fields)))
  params = random_params.make(model)
  want = _program(g4.nn.LoRA(rank=2, model=base), params)
  assert _program(model, params) == want


@pytest.mark.parametrize(
    ('name', 'wanted'),
    [
        ('r', 'rank= for r='),
        ('lora_alpha', 'alpha= for lora_alpha='),
        ('target_modules', 'targets= for target_modules='),
    ],
)
def test_words_of_peft_are_told_ours(name, wanted):
  with pytest.raises(TypeError, match=f'write {wanted}.*rank=16, alpha=32'):
    g4.nn.LoRA(**{'rank': 4, 'model': models.base(), name: 8})


def test_misspelt_words():
  with pytest.raises(
      TypeError, match="no argument 'alhpa'. Did you mean alpha="
  ):
    g4.nn.LoRA(rank=4, model=models.base(), alhpa=8)
  with pytest.raises(TypeError, match=r"no argument 'bias'\.$"):
    g4.nn.LoRA(rank=4, model=models.base(), bias='none')
