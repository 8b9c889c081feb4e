"""LoRA on routed experts: maths, gradients, memory, sharding."""

import collections
import dataclasses
import functools
import math

from flax import linen as nn
from gemma import peft
import jax
import jax.numpy as jnp
from kauldron import kd
import numpy as np
import pytest

from gemma4_lora import g4
from gemma4_lora.gemma4 import _linears
from gemma4_lora.gemma4 import _upstream
from gemma4_lora.nn.branches import _experts
from gemma4_lora.targets import _resolve
from gemma4_lora.targets import _rule
from tests.lib import programs
from tests.lib import random_params
from tests.lib import training

_TOKENS = jnp.asarray(np.random.default_rng(0).integers(3, 1000, (2, 5)))
# One layer's attention leaves them equal, so all go to the same experts.
_EQUAL = jnp.full_like(_TOKENS, 7)
_MLP = 'layer_0.mlp'


def _base(*, dtype=jnp.float32, **config):
  """A model of one layer, with a mixture of experts."""
  model = g4.testing.Gemma4_26B_A4B(tokens='batch.input', dtype=dtype)
  local = _upstream.AttentionType.LOCAL_SLIDING
  config = {'attention_types': (local,)} | config
  return model.clone(config=dataclasses.replace(model.config, **config))


def _logits(model, params, **kwargs):
  return model.apply({'params': params}, _TOKENS, **kwargs).logits


def _zero_b(params):
  return jax.tree_util.tree_map_with_path(
      lambda path, x: jnp.zeros_like(x) if path[-1].key == 'b' else x, params
  )


# ---------------------------------- Maths -----------------------------------


def _gelu(x):
  return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _merged_experts(params, scale):
  """Per projection `[E, in, out]` in float64, branches added where there are."""
  flat = {
      k: np.asarray(v, np.float64) for k, v in training.flat(params).items()
  }
  gate_up = flat[f'{_MLP}.gating_einsum.w'].transpose(1, 0, 3, 2)
  weights = {
      'gating_einsum.lora.expert_gate': gate_up[0],
      'gating_einsum.lora.expert_up': gate_up[1],
      'linear.lora.expert_down': flat[f'{_MLP}.linear.w'],
  }
  merged = []
  for name, weight in weights.items():
    if f'{_MLP}.{name}.a' in flat:
      a, b = flat[f'{_MLP}.{name}.a'], flat[f'{_MLP}.{name}.b']
      weight = weight + scale * np.stack(
          [x @ y for x, y in zip(a, b, strict=True)]
      )
    merged.append(weight)
  return merged


def _dense_moe(params, x, logits, *, top_k, scale):
  """Each token through each of its experts, one at a time, in float64.

  Returns:
    The output, and how many tokens fell on each expert.
  """
  gate, up, down = _merged_experts(params, scale)
  expert_scale = np.asarray(params['layer_0']['mlp']['per_expert_scale'])
  load = np.zeros(len(gate), int)
  out = np.zeros(x.shape, np.float64)
  for i in np.ndindex(x.shape[:-1]):
    token = x[i].astype(np.float64)
    experts = np.argsort(-logits[i], kind='stable')[:top_k]
    weights = np.exp(logits[i].astype(np.float64) - logits[i].max())
    weights /= weights[experts].sum()
    for e in experts:
      load[e] += 1
      hidden = _gelu(token @ gate[e]) * (token @ up[e])
      out[i] += weights[e] * expert_scale[e] * (hidden @ down[e])
  return out, load


@functools.partial(jax.jit, static_argnums=0)
def _run_moe(model, params, tokens=_TOKENS):
  """Returns input, router logits and output of the mixture of experts."""
  _, state = model.apply({'params': params}, tokens, capture_intermediates=True)
  return _moe_of(state)


def _moe_of(state):
  layer = state['intermediates']['layer_0']
  return tuple(
      module['__call__'][0]
      for module in (
          layer['pre_ffw_norm'],
          layer['mlp']['router_logits'],
          layer['mlp'],
      )
  )


def _check_moe(model, params, tokens=_TOKENS, *, scale):
  """Compares with NumPy's own loop; returns the tokens of each expert."""
  x, logits, got = map(np.asarray, _run_moe(model, params, tokens))
  dense = functools.partial(
      _dense_moe, params, x, logits, top_k=model.config.top_k_experts
  )
  want, load = dense(scale=scale)
  unadapted, _ = dense(scale=0.0)
  assert np.abs(want - unadapted).max() > 0.05 * np.abs(want).max()
  np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())
  return load


@pytest.mark.parametrize('top_k', [1, 2, 6])
def test_equals_dense_maths(top_k):
  """Experts that get none, some or all of the tokens, by numpy's own loop."""
  model = g4.nn.LoRA(
      rank=3, alpha=6, targets='experts', model=_base(top_k_experts=top_k)
  )
  params = random_params.make(model)
  mixed = _check_moe(model, params, scale=2.0)
  assert mixed.sum() == _TOKENS.size * top_k
  if top_k == 1:
    assert 0 in mixed and len(set(mixed)) > 2
  equal = _check_moe(model, params, _EQUAL, scale=2.0)
  assert sorted(equal) == [0] * (6 - top_k) + [_EQUAL.size] * top_k


@pytest.mark.parametrize('projection', ['expert_gate', 'expert_down'])
def test_one_projection_alone(projection):
  """Its leaves alone exist, and it alone changes."""
  model = g4.nn.LoRA(rank=3, targets=projection, model=_base())
  params = random_params.make(model)
  lora = training.flat(peft.split_params(params).lora)
  scope = 'linear' if projection == 'expert_down' else 'gating_einsum'
  inner, outer = (20, 40) if projection == 'expert_down' else (40, 20)
  assert {path: x.shape for path, x in lora.items()} == {
      f'{_MLP}.{scope}.lora.{projection}.a': (6, inner, 3),
      f'{_MLP}.{scope}.lora.{projection}.b': (6, 3, outer),
  }
  _check_moe(model, params, scale=1.0)


@pytest.mark.parametrize(
    ('dtype', 'jit'), [(jnp.float32, False), (jnp.bfloat16, True)]
)
def test_zero_b_equals_the_base_model_bitwise(dtype, jit):
  base = _base(dtype=dtype)
  model = g4.nn.LoRA(rank=3, targets=['text', 'experts'], model=base)
  params = _zero_b(random_params.make(model))
  plain = g4.nn.RouterFix(model=base)
  wrap = jax.jit if jit else lambda f: f
  got = wrap(lambda p: _logits(model, p))(params)
  want = wrap(lambda p: _logits(plain, p))(peft.split_params(params).original)
  assert got.dtype == want.dtype
  np.testing.assert_array_equal(got, want)


def test_gradients_equal_finite_differences_in_float64():
  """Along a random direction of each A and each B."""
  with jax.enable_x64(True):
    model = g4.nn.LoRA(
        rank=2,
        alpha=3,
        targets='experts',
        dtype=jnp.float64,
        model=_base(dtype=jnp.float64),
    )
    params = random_params.make(model)
    original, lora = peft.split_params(params)
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype('float64')}

    @jax.jit
    @jax.value_and_grad
    def loss_and_grads(lora):
      logits = _logits(model, peft.merge_params(original, lora))
      return jnp.mean(jax.nn.log_softmax(logits)[..., 7])

    _, grads = loss_and_grads(lora)
    leaves, treedef = jax.tree.flatten(lora)
    rng = np.random.default_rng(0)
    for i, grad in enumerate(jax.tree.leaves(grads)):
      direction = rng.standard_normal(grad.shape)

      def along(step, i=i, direction=direction):
        moved = leaves[:i] + [leaves[i] + step * direction] + leaves[i + 1 :]
        loss, _ = loss_and_grads(jax.tree.unflatten(treedef, moved))
        return float(loss)

      h = 1e-5
      want = (along(h) - along(-h)) / (2 * h)
      got = float(np.sum(np.asarray(grad) * direction))
      assert abs(want) > 1e-6
      np.testing.assert_allclose(got, want, rtol=1e-6)


def test_only_experts_that_ran_get_gradients():
  model = g4.nn.LoRA(rank=2, targets='experts', model=_base())
  params = random_params.make(model)
  original, lora = peft.split_params(params)

  def loss(lora):
    params = peft.merge_params(original, lora)
    out, state = model.apply(
        {'params': params}, _EQUAL, capture_intermediates=True
    )
    loss = jnp.mean(jax.nn.log_softmax(out.logits)[..., 8])
    return loss, _moe_of(state)[1]

  grads, logits = jax.jit(jax.grad(loss, has_aux=True))(lora)
  chosen = np.argsort(logits[0, 0])[-2:]
  grads = training.flat(grads)
  assert len(grads) == 6
  for path, grad in grads.items():
    ran = np.any(np.asarray(grad), axis=(1, 2))
    assert sorted(chosen) == np.flatnonzero(ran).tolist(), path


# --------------------------------- Settings ---------------------------------


def test_a_is_kaiming_uniform_over_the_input_of_one_expert():
  model = g4.nn.LoRA(rank=64, targets='experts', model=_base())

  @jax.jit  # Compiles only what it returns.
  def init(key):
    return peft.split_params(model.init(key, _TOKENS)['params']).lora

  lora = training.flat(init(jax.random.key(0)))
  for path, leaf in lora.items():
    assert leaf.dtype == jnp.float32, path
    if path.endswith('.b'):
      assert not np.any(leaf), path
      continue
    bound = 1 / math.sqrt(20 if 'down' in path else 40)
    assert 0.98 * bound < np.abs(leaf).max() <= bound, path
    # Each expert draws its own.
    assert len(np.unique(np.asarray(leaf)[:, 0, 0])) == 6, path


def test_rank_alpha_and_rslora_are_the_rules():
  """Experts at rank 2, attention at 8; the branch's scale follows the rule."""
  base = _base()
  rule = g4.targets.experts(rank=2, alpha=6)
  model = g4.nn.LoRA(rank=8, targets=[rule, 'attention'], model=base)
  params = random_params.make(model)
  mlp = params['layer_0']['mlp']
  assert mlp['linear']['lora']['expert_down']['a'].shape == (6, 20, 2)
  q = params['layer_0']['attn']['q_einsum']['lora']['q']
  assert q['a'].shape == (40, 8)

  model = model.clone(use_rslora=True)
  _check_moe(model, params, scale=6 / math.sqrt(2))


def test_dropout_is_off_unless_training():
  model = g4.nn.LoRA(rank=2, targets='experts', dropout=0.5, model=_base())
  params = random_params.make(model)

  def logits(params, seed, *, model=model, is_training=True):
    rngs = {'dropout': jax.random.key(seed)}
    kwargs = {'rngs': rngs, 'is_training_property': is_training}
    return _logits(model, params, **kwargs)

  def program(**kwargs):
    run = functools.partial(logits, **kwargs)
    return str(jax.make_jaxpr(run)(params, 0))

  without = model.clone(dropout=0.0)
  for mode in (None, False):
    off = program(model=without, is_training=mode)
    assert program(is_training=mode) == off
  only_down = model.clone(
      targets=[g4.targets.Rule('expert_down'), g4.targets.experts(dropout=0.0)]
  )
  masks = [program(model=x).count('random_bits') for x in (only_down, model)]
  assert 0 < masks[0] < masks[1]

  run = jax.jit(logits)
  trained = run(params, 0)
  np.testing.assert_array_equal(run(params, 0), trained)
  assert np.any(run(params, 1) != trained)


# ----------------------------- Memory, sharding -----------------------------


def _large_arrays(model, size):
  """Shapes of what loss and gradients of all LoRA leaves compute, by count."""
  params = jax.eval_shape(model.init, jax.random.key(0), _TOKENS)['params']
  original, lora = peft.split_params(params)

  def loss(lora, original):
    logits = _logits(model, peft.merge_params(original, lora))
    return jnp.mean(jax.nn.log_softmax(logits)[..., 7])

  program = jax.make_jaxpr(jax.value_and_grad(loss))(lora, original)
  arrays = programs.arrays(program.jaxpr)
  return collections.Counter(x.shape for x in arrays if x.size >= size)


def test_no_array_of_a_merged_weights_size():
  """128 experts: LoRA adds no large array to those that frozen ones make."""
  base = _base(num_experts=128, top_k_experts=2, embed_dim=128, expert_dim=256)
  experts = [row for row in _linears.linears(base.config) if row.batch_axes]
  # The smallest is `expert_down`'s.
  merged = min(math.prod(row.shape) for row in experts)
  frozen = _large_arrays(
      g4.nn.LoRA(rank=2, targets='attention', model=base), 0.25 * merged
  )
  adapted = _large_arrays(
      g4.nn.LoRA(rank=2, targets=['attention', 'experts'], model=base),
      0.25 * merged,
  )
  assert adapted <= frozen, (frozen, adapted, merged)


def test_shards_over_eight_devices_like_one():
  """FSDP: experts' A and B, and their base, are sharded; the step is equal."""
  model = g4.nn.LoRA(rank=8, targets='experts', model=_base(num_experts=8))
  params = random_params.make(model)

  @jax.jit
  def step(params):
    original, lora = peft.split_params(params)

    def loss(lora):
      logits = _logits(model, peft.merge_params(original, lora))
      return jnp.mean(jax.nn.log_softmax(logits)[..., 7])

    return jax.value_and_grad(loss)(lora)

  sharding = kd.sharding.FSDPSharding(min_size_to_shard_mb=0)(params)
  sharded = jax.device_put(params, sharding)
  leaves = training.flat(sharded)
  for path in (
      'layer_0.mlp.gating_einsum.w',
      'layer_0.mlp.gating_einsum.lora.expert_up.a',
      'layer_0.mlp.linear.lora.expert_down.b',
  ):
    assert len(leaves[path].sharding.device_set) == 8, path
    assert not leaves[path].sharding.is_fully_replicated, path
  got, want = step(sharded), step(params)
  np.testing.assert_allclose(got[0], want[0], rtol=1e-4)
  grads = training.flat(got[1])
  for path, leaf in training.flat(want[1]).items():
    assert np.any(leaf), path
    error = np.abs(grads[path] - leaf).max()
    assert error <= 1e-3 * np.abs(leaf).max(), path


# ------------------------------- Never silent -------------------------------


class _Experts(nn.Module):
  """A mixture of experts whose code we do not know."""

  def __call__(self, x):
    return x


class _Layer(nn.Module):

  @nn.compact
  def __call__(self, x):
    return _Experts(name='mlp')(x)


class _Net(nn.Module):

  @nn.compact
  def __call__(self, x):
    return _Layer(name='layer_0')(x)


def test_experts_that_run_elsewhere_are_an_error():
  """A gemma that renames the method must not train without the branches."""
  adapted = _resolve.resolve(
      _rule.normalize('experts'), _linears.linears(_base().config), rank=2
  )
  injector = _experts.ExpertInjector(
      adapted=adapted,
      use_rslora=False,
      is_training=False,
      dtype=jnp.float32,
      root=(),
      base_dtype=jnp.float32,
  )
  with nn.intercept_methods(injector):
    with pytest.raises(
        ValueError, match='cannot adapt the experts of layer_0.'
    ):
      _Net().apply({}, jnp.ones((1, 2, 40)))
