"""What does not fit: each kind of difference, and what the message says."""

import dataclasses
import re

from gemma import gm
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from gemma4_lora import g4
from gemma4_lora.testing import _checkpoints
from tests.lib import states

_E2B = 'Gemma4_E2B'


@pytest.fixture
def write(tmp_path):
  """Writes E2B's params, changed, as released; returns the path."""

  def _write(change, variant=_E2B):
    params = _checkpoints.random_params(
        _checkpoints.abstract_params(states.model(variant))
    )
    change(params)
    tree = jax.tree.map(jnp.asarray, params)
    path = tmp_path / 'changed'
    with ocp.StandardCheckpointer() as ckpt:
      ckpt.save(path, tree)
    return path

  return _write


def _fails(path, match, *, variant=_E2B, text_only=True, **kwargs):
  """Restores, expects an error, and checks that the state can still be used."""
  state = states.make_state(variant, text_only=text_only, lora='ours')
  if not text_only:
    state = states.make_state(variant, text_only=False)
  with pytest.raises(ValueError, match=match) as e:
    g4.ckpts.PartialLoad(path=path, **kwargs).transform(state)
  states.assert_usable(state)
  return str(e.value)


def test_missing_leaves_are_all_named(write):
  """`missing='error'` names every path, with shape and dtype."""

  def drop(params):
    for i in range(1, 6):
      del params[f'layer_{i}']['skip_scale']
      del params[f'layer_{i}']['pre_ffw_norm']

  message = _fails(write(drop), '10 leaves of the model are not in the')
  for i in range(1, 6):
    assert f'params.layer_{i}.skip_scale (1,) bfloat16' in message
    assert f'params.layer_{i}.pre_ffw_norm.scale (32,) bfloat16' in message
  assert 'missing="warn"' in message and 'ignore_model_keys=' in message


def test_missing_warns_and_keeps_own_values(write, caplog):
  """`missing='warn'` keeps the state's values, and lists them in one warning."""

  def drop(params):
    del params['layer_1']['skip_scale']
    del params['layer_2']['pre_ffw_norm']

  path = write(drop)
  state = states.make_state(_E2B, lora='ours')
  own = np.asarray(state.params['layer_1']['skip_scale'])
  out = g4.ckpts.PartialLoad(path=path, missing='warn').transform(state)

  np.testing.assert_array_equal(out.params['layer_1']['skip_scale'], own)
  (warning,) = [r for r in caplog.records if r.levelname == 'WARNING']
  assert (
      "2 leaves are not in the checkpoint: the model's own" in warning.message
  )
  assert 'params.layer_1.skip_scale (1,) bfloat16' in warning.message
  assert 'params.layer_2.pre_ffw_norm.scale (32,)' in warning.message


def test_missing_warns_and_fills_abstract_leaves(write):
  """A leaf without a value becomes 1 if it is a scale, or else 0."""

  def drop(params):
    del params['layer_1']['skip_scale']
    del params['layer_2']['mlp']['linear']

  state = states.abstract(states.make_state(_E2B, lora='ours'))
  transform = g4.ckpts.PartialLoad(path=write(drop), missing='warn')
  params = transform.transform(state).params
  assert np.all(np.asarray(params['layer_1']['skip_scale']) == 1)
  assert np.all(np.asarray(params['layer_2']['mlp']['linear']) == 0)


def test_misspelt_leaf_gets_a_suggestion(write):
  """A missing leaf shows the checkpoint's leaf of a close name."""

  def rename(params):
    attn = params['layer_0']['attn']
    attn['query_nrm'] = attn.pop('query_norm')

  _fails(write(rename), r"Did you mean \['params.layer_0.attn.query_nrm.scale'")


def test_unexpected_leaves_are_an_error(write):
  """A leaf that the model does not have is named, with its shape."""

  def add(params):
    params['layer_0']['attn']['extra'] = {'w': np.ones((3, 4), np.float32)}

  message = _fails(
      write(add), '1 leaves of the checkpoint are not in the model'
  )
  assert 'params.layer_0.attn.extra.w (3, 4) float32' in message
  assert 'unexpected="warn"' in message and 'ignore_restored_keys' in message


def test_unexpected_warns_and_leaves_out(write, caplog):
  """`unexpected='warn'` goes on, and lists what it left out."""

  def add(params):
    params['layer_0']['attn']['extra'] = {'w': np.ones((3, 4), np.float32)}

  path = write(add)
  state = states.make_state(_E2B, lora='ours')
  before = states.specs(state)
  out = g4.ckpts.PartialLoad(path=path, unexpected='warn').transform(state)
  assert states.specs(out) == before
  (warning,) = [r for r in caplog.records if r.levelname == 'WARNING']
  assert 'params.layer_0.attn.extra.w (3, 4)' in warning.message


def test_skip_lora_names_where_the_policy_is(write):
  """A loader without `missing=` is told which one has it."""

  def drop(params):
    del params['layer_1']['skip_scale']

  transform = g4.ckpts.SkipLoRA4(
      wrapped=gm.ckpts.LoadCheckpoint(path=write(drop))
  )
  with pytest.raises(
      ValueError, match=r'wrapped=g4.ckpts.PartialLoad\(path=…, missing="warn"'
  ):
    transform.transform(states.make_state(_E2B, lora='ours'))


@pytest.mark.parametrize(
    ('leaf', 'shape', 'field'),
    [
        ('embedder.input_embedding', (1030, 32), 'num_embed (model 1024, che'),
        (
            'layer_0.mlp.linear',
            (50, 32),
            'hidden_dim (model 48, checkpoint 50)',
        ),
        ('layer_0.attn.q_einsum.w', (5, 32, 8), 'num_heads (model 4, checkpo'),
        ('layer_0.attn.q_einsum.w', (4, 32, 9), 'head_dim or global_key_size'),
        ('layer_0.attn.kv_einsum.w', (2, 3, 32, 8), 'num_kv_heads (model 1'),
        ('final_norm.scale', (33,), 'embed_dim (model 32, checkpoint 33)'),
        ('layer_0.per_layer_input_gate.w', (32, 11), 'per_layer_input_dim'),
        ('embedder.per_layer_embeddings', (1024, 7, 10), 'number of layers'),
        ('layer_0.mlp.linear', (3, 48, 32), 'enable_moe'),
    ],
)
def test_mismatch_names_the_field(write, leaf, shape, field):
  """A shape mismatch shows both sides, and the config field of the axis."""
  *parents, last = leaf.split('.')

  def change(params):
    for key in parents:
      params = params[key]
    params[last] = np.ones(shape, params[last].dtype)

  message = _fails(write(change), '1 leaves have another shape')
  assert re.search(
      rf'params.{leaf}: model \(.*\), checkpoint {re.escape(str(shape))}',
      message,
  )
  assert field in message.partition('most likely:')[2]


@pytest.mark.parametrize(
    ('leaf', 'shape', 'field'),
    [
        ('router_logits.w', (40, 7), 'num_experts (model 6, checkpoint 7)'),
        ('linear.w', (6, 21, 40), 'expert_dim (model 20, checkpoint 21)'),
    ],
)
def test_mismatch_names_the_field_of_experts(write, leaf, shape, field):
  """So it does for experts, whose linears have an axis more."""
  first, second = leaf.split('.')

  def change(params):
    params['layer_0']['mlp'][first][second] = np.ones(shape, np.float32)

  path = write(change, 'Gemma4_26B_A4B')
  message = _fails(path, '1 leaves have another', variant='Gemma4_26B_A4B')
  assert field in message.partition('most likely:')[2]


def test_mismatch_is_an_error_also_if_others_warn(write):
  """No argument lets a wrong shape pass."""

  def change(params):
    params['final_norm']['scale'] = np.ones(33, np.float32)

  path = write(change)
  _fails(path, 'another shape', missing='warn', unexpected='warn')


def test_float_to_float_converts(write, caplog):
  """Any float goes into the state's dtype, as numpy rounds it; logged."""
  dtypes = [np.float32, np.float16, np.float64]
  written = {}

  def change(params):
    for i, dtype in enumerate(dtypes):
      value = np.random.default_rng(i).normal(size=(48 if i < 3 else 96, 32))
      params[f'layer_{i}']['mlp']['linear'] = written[i] = value.astype(dtype)

  caplog.set_level('INFO', logger='absl')
  with jax.enable_x64(True):
    path = write(change)
  state = states.make_state(_E2B, lora='ours')
  out = g4.ckpts.PartialLoad(path=path).transform(state)
  for i, value in written.items():
    got = np.asarray(out.params[f'layer_{i}']['mlp']['linear'])
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, value.astype(jnp.bfloat16))
  assert 'converted 1 leaves from float32 to bfloat16' in caplog.text
  assert 'converted 1 leaves from float64 to bfloat16' in caplog.text


def test_int_to_float_is_an_error(write):
  """Integers are not weights: quantised values need their scales."""

  def change(params):
    params['layer_0']['mlp']['linear'] = np.ones((48, 32), np.int8)

  message = _fails(write(change), 'a dtype that does not convert')
  assert 'params.layer_0.mlp.linear: model bfloat16, checkpoint int8' in message


def test_gemma3_checkpoint_is_recognised(tmp_path):
  """A Gemma 3 checkpoint is called that, whatever the policy."""
  config = dataclasses.replace(
      gm.nn.Gemma3_270M.config,
      num_embed=64,
      embed_dim=16,
      hidden_dim=24,
      head_dim=8,
      attention_types=gm.nn.Gemma3_270M.config.attention_types[:2],
  )
  gemma3 = gm.nn.Gemma3_270M(config=config)
  shapes = jax.eval_shape(
      gemma3.init, jax.random.key(0), jnp.ones((1, 4), jnp.int32)
  )
  params = _checkpoints.random_params(shapes['params'])
  path = tmp_path / 'gemma3'
  gm.ckpts.save_params(params, path, wait_until_finished=True)
  for policy in ('error', 'warn'):
    _fails(
        path,
        'this is a checkpoint of Gemma 3, and the model is Gemma 4',
        missing=policy,
        unexpected=policy,
    )


def test_e4b_checkpoint_into_e2b(checkpoint):
  """Another variant reads as what it is: fields with both values."""
  path, _ = checkpoint('Gemma4_E4B')
  message = _fails(path, 'the checkpoint does not fit the model')
  assert 'embed_dim (model 32, checkpoint 40)' in message
  assert 'num_kv_heads (model 1, checkpoint 2)' in message
  assert 'per_layer_input_dim (model 10, checkpoint 12)' in message


def test_another_number_of_layers_is_said_first(write):
  """Rather than only hundreds of leaves that are missing or unexpected."""

  def drop(params):
    del params['layer_5'], params['layer_4']

  message = _fails(write(drop), 'The checkpoint has 4 layers and the model 6')
  assert message.splitlines()[1].startswith('The checkpoint has 4 layers')


def test_text_checkpoint_into_multimodal_model(checkpoint):
  """Towers that the checkpoint lacks are missing; the way out is text_only."""
  path, _ = checkpoint(_E2B)
  message = _fails(path, 'text_only=True', text_only=False)
  assert 'params.vision_encoder.entry.pos_emb (16, 2, 24) float32' in message


def test_extra_leaf_of_a_tower_that_the_model_has(tmp_path):
  """Only towers that the model does not have are left out without a word."""
  params = _checkpoints.random_params(
      _checkpoints.abstract_params(states.model('Gemma4_31B', text_only=False))
  )
  params['vision_encoder']['extra'] = np.ones(3, np.float32)
  gm.ckpts.save_params(params, tmp_path / 'c', wait_until_finished=True)
  state = states.make_state('Gemma4_31B', text_only=False)
  with pytest.raises(ValueError, match='params.vision_encoder.extra'):
    g4.ckpts.PartialLoad(path=tmp_path / 'c').transform(state)


def test_nothing_to_restore(checkpoint):
  """A restore that restores nothing is a mistake."""
  path, _ = checkpoint(_E2B)
  _fails(path, 'nothing to restore', ignore_restored_keys=('**',))
