"""LoRA on the vision and audio towers, and between them and the text."""

import functools

from gemma import peft
import jax
import jax.numpy as jnp
from kauldron import kd
import numpy as np
import optax
import pytest

from gemma4_lora import g4
from gemma4_lora.gemma4 import _upstream
from tests.lib import merged
from tests.lib import models
from tests.lib import multimodal
from tests.lib import random_params
from tests.lib import training

# Every tower, ready set and name: 31B has no audio.
_TOWERS = {
    'Gemma4_E2B': [
        'vision',
        'audio',
        'multimodal_projections',
        'patch_embedding',
        'subsampling',
        'relative_position',
        'output_projection',
    ],
    'Gemma4_31B': ['vision', 'multimodal_projections', 'patch_embedding'],
}
_HAS_AUDIO = {'Gemma4_E2B': True, 'Gemma4_31B': False}


def _model(name, *, targets=(), cut=models.one_layer, **kwargs):
  return models.lora(
      name,
      cut=cut,
      text_only=False,
      targets=[*_TOWERS[name], *targets],
      **{'rank': 3, 'alpha': 6} | kwargs,
  )


def _two_of_audio(model):
  """Returns the model with one layer of text, and two of audio that differ."""
  return models.one_layer(model, num_audio=2)


@functools.partial(jax.jit, static_argnames=('model', 'audio'))
def _compiled_logits(model, params, *, audio):
  return _logits(model, params, audio=audio)


def _logits(model, params, *, audio, **kwargs):
  inputs = multimodal.inputs(audio=audio)
  return model.apply({'params': params}, **inputs, **kwargs).logits


def _plain(model):
  """The model without LoRA; gemma's own attends to padding patches."""
  return g4.nn.RouterFix(model=model.model)


def _tight(params, *, inputs, outputs):
  """Narrows every clip so that it binds: to these sizes, either side of 0."""
  bounds = {'clip_input': inputs, 'clip_output': outputs}

  def value(path, x):
    clip, _, end = path[-1].key.rpartition('_')
    if clip not in bounds:
      return x
    return jnp.full_like(x, bounds[clip] * (-1 if end == 'min' else 1))

  return jax.tree_util.tree_map_with_path(value, params)


# ------------------------------- The maths --------------------------------


@pytest.mark.parametrize(
    ('name', 'tight', 'use_dora'),
    [
        ('Gemma4_E2B', False, False),
        ('Gemma4_E2B', True, False),
        ('Gemma4_E2B', True, True),
        ('Gemma4_31B', False, True),
    ],
)
def test_equals_the_model_with_merged_weights(name, tight, use_dora):
  """Of every projection of the towers at once, whether or not clips bind."""
  audio = _HAS_AUDIO[name]
  model = _model(name, cut=_two_of_audio, use_dora=use_dora)
  params = random_params.with_towers(model)
  if tight:
    params = _tight(params, inputs=0.3, outputs=0.1)
  logits = functools.partial(_compiled_logits, audio=audio)
  got = logits(model, params)
  want = logits(_plain(model), merged.base(model, params))
  unadapted = logits(_plain(model), peft.split_params(params).original)
  assert np.isfinite(want).all()
  assert np.abs(want - unadapted).max() > 0.2
  np.testing.assert_allclose(got, want, atol=2e-3)


@functools.cache
def _audio_layer_with_clips():
  """Parameters of a layer whose clips bind, and what its modules return."""
  model = _model('Gemma4_E2B')
  params = random_params.with_towers(model)
  params = _tight(params, inputs=0.3, outputs=0.1)

  def layer(tree):
    return tree['audio_encoder']['conformer/stacked_layers_0']

  @jax.jit  # Compiles only what it returns.
  def run(params):
    _, state = model.apply(
        {'params': params},
        **multimodal.inputs(audio=True),
        capture_intermediates=True,
    )
    return layer(state['intermediates'])

  return layer(params), run(params)


@pytest.mark.parametrize(
    ('projection', 'source', 'module'),
    [
        ('linear_start', ('lconv', 'ln'), ('lconv', 'linear_start')),
        (
            'up',
            ('fflayer_start', 'pre_layer_norm'),
            ('fflayer_start', 'ffn_layer1'),
        ),
        (
            'v',
            ('trans_atten', 'pre_norm'),
            ('trans_atten', 'self_atten', 'value'),
        ),
    ],
)
def test_the_branch_is_inside_both_clips(projection, source, module):
  """One linear in NumPy: clip_out(W clip_in(x) + s B A clip_in(x))."""
  leaves, state = _audio_layer_with_clips()
  for key in module:
    leaves = leaves[key]

  def called(*path):
    node = state
    for key in path:
      node = node[key]
    return np.asarray(node['__call__'][0])

  x, got = called(*source), called(*module)
  w, a, b = (
      np.asarray(leaf, np.float64)
      for leaf in (
          leaves['kernel'],
          leaves['lora'][projection]['a'],
          leaves['lora'][projection]['b'],
      )
  )
  clipped = np.clip(x.astype(np.float64), -0.3, 0.3)
  inside = clipped @ w + 2 * (clipped @ a) @ b
  want = np.clip(inside, -0.1, 0.1)
  outside = np.clip(clipped @ w, -0.1, 0.1) + 2 * (x @ a) @ b
  assert np.mean(clipped != x) > 0.3  # Both clips bind,
  assert np.mean(want != inside) > 0.1
  assert np.abs(want - outside).max() > 0.05  # and tell it from the wrong one.
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_zero_b_equals_the_base_model_bitwise():
  """Clipped linears of the towers, and those of the text, which have none."""
  model = _model('Gemma4_E2B', targets=['text']).clone(
      model=multimodal.base_of_one_layer('Gemma4_E2B')  # In bfloat16.
  )
  params = random_params.with_towers(model)
  params = _tight(params, inputs=0.3, outputs=0.1)
  params = jax.tree_util.tree_map_with_path(
      lambda path, x: jnp.zeros_like(x)
      if path[-1].key == 'b' and 'lora' in str(path)
      else x,
      params,
  )
  got = _compiled_logits(model, params, audio=True)
  original = peft.split_params(params).original
  want = _compiled_logits(_plain(model), original, audio=True)
  np.testing.assert_array_equal(got, want)


# ------------------------------- Training ---------------------------------


def _loss(model, params, *, audio, **kwargs):
  logits = _logits(model, params, audio=audio, **kwargs).astype(jnp.float32)
  tokens = multimodal.inputs(audio=audio)['tokens'][:, 1:]
  losses = optax.softmax_cross_entropy_with_integer_labels(
      logits[:, :-1], jnp.maximum(tokens, 0)
  )
  return jnp.mean(losses, where=tokens > 0)


def test_gradients_reach_every_leaf():
  """Text, towers and what joins them; in each layer of a stacked weight.

  With dropout in the audio tower alone: off in eval; reproducible from its rng,
  and another with another.
  """
  model = _model('Gemma4_E2B')
  audio = g4.targets.audio(dropout=0.5)
  towers = (audio if x == 'audio' else x for x in _TOWERS['Gemma4_E2B'])
  model = model.clone(targets=['text', *towers])
  assert {x.row.tower for x in model.adapted if x.dropout} == {'audio'}
  original, lora = peft.split_params(random_params.with_towers(model))

  def loss(lora, seed, is_training=True):
    return _loss(
        model,
        peft.merge_params(original, lora),
        audio=True,
        rngs={'dropout': jax.random.key(seed)},
        is_training_property=is_training,
    )

  assert np.any(multimodal.images().positions_xy == -1)
  step = jax.jit(jax.value_and_grad(loss))
  value, grads = step(lora, 0)
  _check_reached(model, grads)
  again = step(lora, 0)
  jax.tree.map(np.testing.assert_array_equal, again, (value, grads))
  assert step(lora, 1)[0] != value
  evaluating = functools.partial(loss, is_training=False)
  assert 'random_bits' not in str(jax.make_jaxpr(evaluating)(lora, 0))


def _check_reached(model, grads):
  """Gradients of LoRA: finite, and not zero in any layer."""
  flat = {path: np.asarray(x) for path, x in training.flat(grads).items()}
  for path, grad in flat.items():
    assert np.isfinite(grad).all(), path
  for linear in model.adapted:
    for leaf in 'ab':
      grad = flat[f'{linear.row.lora_path}.{leaf}']
      layers = grad if linear.row.stacked else grad[None]
      for layer in layers:
        assert np.abs(layer).max() > 0, (linear.row.name, leaf)


def test_dropout_under_scan():
  """Each layer and projection has its own mask, on 8 devices those of one.

  At this rate about half of the inputs are dropped for every patch, and their
  rows of A get no gradient at all: the mask, read off the gradients.
  """
  base = multimodal.base_of_one_layer('Gemma4_31B', dtype=jnp.float32)
  model = g4.nn.LoRA(rank=3, targets='vision', dropout=0.97, model=base)
  params = random_params.with_towers(model)

  @jax.jit
  def grads(params, seed):
    original, lora = peft.split_params(params)
    return jax.grad(
        lambda p: _loss(
            model,
            peft.merge_params(original, p),
            audio=False,
            rngs={'dropout': jax.random.key(seed)},
            is_training_property=True,
        )
    )(lora)

  def reached(grads):
    flat = training.flat(grads)
    return {
        linear.row.projection: np.any(flat[f'{linear.row.lora_path}.a'], -1)
        for linear in model.adapted
    }

  first = grads(params, 0)
  _check_reached(model, first)
  masks = reached(first)
  # All of one shape, [L, *in]: masks of the same inputs can be compared.
  inputs = [masks[name] for name in ('q', 'k', 'v', 'gate', 'up')]
  layers = [layer for mask in inputs for layer in mask]
  assert all(0 < layer.mean() < 1 for layer in layers)
  assert len({layer.tobytes() for layer in layers}) == 2 * len(inputs)
  for name in ('o', 'down'):
    assert np.any(masks[name][0] != masks[name][1])

  jax.tree.map(np.testing.assert_array_equal, grads(params, 0), first)
  other = reached(grads(params, 1))
  assert all(np.any(other[name] != masks[name]) for name in masks)
  # In eval, the program has no random numbers in it.
  evaluating = jax.make_jaxpr(
      lambda p, seed: _loss(
          model,
          p,
          audio=False,
          rngs={'dropout': jax.random.key(seed)},
          is_training_property=False,
      )
  )
  assert 'random_bits' not in str(evaluating(params, 0))

  sharded = grads(_sharded(params), 0)
  for name, mask in reached(sharded).items():
    np.testing.assert_array_equal(mask, masks[name], err_msg=name)
  for path, grad in training.flat(sharded).items():
    want = training.flat(first)[path]
    error = np.abs(grad - want).max()
    assert error <= 1e-3 * max(np.abs(want).max(), 1e-3), path


def _sharded(params):
  """Each leaf along an axis that 8 divides, where there is one."""
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ('x',))

  def put(x):
    axis = next((i for i, n in enumerate(x.shape) if n % 8 == 0), None)
    spec = [None] * x.ndim
    if axis is not None:
      spec[axis] = 'x'
    spec = jax.sharding.PartitionSpec(*spec)
    return jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))

  out = jax.tree.map(put, params)
  assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(out))
  return out


# ------------------------------ Parameters --------------------------------


def test_init_draws_each_stacked_layer_by_its_own_fan_in():
  """U(-1/sqrt(fan_in), 1/sqrt(fan_in)); the layer axis is no input."""
  base = multimodal.base_of_one_layer('Gemma4_31B')
  model = g4.nn.LoRA(rank=64, targets='vision', model=base)
  tokens = jnp.ones((1, 4), jnp.int32)

  @jax.jit  # Compiles only what it returns.
  def init():
    params = model.init(jax.random.key(0), tokens)['params']
    block = params['vision_encoder']['transformer']['stacked_layers']['block']
    return block['attn']['attn_vec_einsum']['lora']['o']

  lora = jax.tree.map(np.asarray, init())
  assert lora['a'].shape == (2, 2, 12, 64)  # [L, N, H, r]
  assert not np.any(lora['b'])
  bound = 1 / np.sqrt(24)
  for layer in lora['a']:
    assert 0.95 * bound < np.abs(layer).max() <= bound
  assert np.abs(lora['a'][0] - lora['a'][1]).max() > bound


@pytest.mark.parametrize('name', _TOWERS)
def test_base_leaves_are_those_of_the_plain_model(name):
  model = _model(name)
  params = _upstream.abstract_params(model)
  assert peft.split_params(params).original == _upstream.abstract_params(
      model.model
  )


def test_select_lora_leaves_clip_bounds_frozen():
  params = _upstream.abstract_params(_model('Gemma4_E2B'))
  mask = training.flat(kd.optim.select('lora')(params))
  assert mask.keys() == training.flat(params).keys()
  for path, selected in mask.items():
    assert selected == ('.lora.' in path), path
  assert any(path.endswith('clip_output_max') for path in mask)


@pytest.mark.parametrize(
    ('targets', 'match'),
    [
        (['q', 'audio'], r'stacked_layers_\*\.lconv\.linear_.*Give it audio='),
        ('mm_input_projection', 'embedder.mm_input_projection.*it images='),
        ('multimodal_projections', 'images= and audio=, audio_lengths='),
    ],
)
def test_a_tower_that_init_does_not_make(targets, match):
  """gemma makes it only from its own input: no leaf would be there."""
  model = g4.nn.LoRA(
      rank=2, targets=targets, model=multimodal.base_of_one_layer('Gemma4_E2B')
  )
  tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
  with pytest.raises(ValueError, match=match):
    jax.eval_shape(model.init, jax.random.key(0), tokens)


def test_tokens_alone_make_the_vision_tower():
  """gemma shows it an empty image on init: text-only batches can train it."""
  model = g4.nn.LoRA(
      rank=2, targets='vision', model=multimodal.base_of_one_layer('Gemma4_E2B')
  )
  tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
  params = jax.eval_shape(model.init, jax.random.key(0), tokens)['params']
  paths = {path for path in training.flat(params) if '.lora.' in path}
  assert paths == {
      f'{linear.row.lora_path}.{leaf}'
      for linear in model.adapted
      for leaf in 'ab'
  }


def test_a_clip_bound_that_the_parameters_lack():
  model = g4.nn.LoRA(
      rank=2, targets='vision', model=multimodal.base_of_one_layer('Gemma4_E2B')
  )
  params = random_params.with_towers(model)
  block = params['vision_encoder']['transformer']['stacked_layers']['block']
  del block['attn']['q_einsum']['clip_output_min']
  with pytest.raises(ValueError, match='have no .*q_einsum.clip_output_min'):
    _logits(model, params, audio=False)


def test_summary_counts_the_towers():
  model = _model('Gemma4_E2B', use_dora=True)
  params = training.flat(_upstream.abstract_params(model))
  sizes = {path: x.size for path, x in params.items()}
  summary = g4.nn.summary(model)
  assert summary.total == sum(sizes.values())
  assert summary.trainable == sum(n for p, n in sizes.items() if '.lora.' in p)
  (group,) = (
      g for g in summary.groups if g.path.endswith('block.attn.q_einsum.w')
  )
  assert group.layers == (0, 1)
  paths = [f'{group.lora_paths[0]}.{leaf}' for leaf in 'abm']
  assert group.num_params == sum(sizes[path] for path in paths)
  assert params[paths[2]].shape == (2, 2, 12)  # [L, N, H]
  assert group.projection == 'vision q'
  # As Hugging Face counts: a module for each layer of a stacked weight.
  names = [name for x in model.adapted for name in x.row.hf_names]
  assert summary.num_projections == len(names) > len(model.adapted)
  magnitudes = sum(n for p, n in sizes.items() if p.endswith('.m'))
  half = g4.nn.summary(model.clone(dtype=jnp.bfloat16))
  assert half.num_bytes == 2 * (summary.trainable - magnitudes) + 4 * magnitudes
  assert half.num_magnitudes == magnitudes  # The name before `in_float32`.
  assert f'bfloat16 ({magnitudes:,} magnitudes of DoRA in float32' in str(half)
  text = g4.nn.summary(g4.nn.LoRA(rank=2, model=model.model))
  assert '2 vision q, 2 vision k' in str(text)  # Of two layers.
