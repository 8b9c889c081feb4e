"""DoRA's magnitudes start at the norms of the restored base."""

import dataclasses
import functools

from gemma import gm
from gemma import peft
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4_lora import g4
from gemma4_lora.ckpts.restore import _followers
from gemma4_lora.nn.branches import _quantized_base
from tests.lib import models
from tests.lib import multimodal
from tests.lib import random_params
from tests.lib import states
from tests.lib import training

_model = functools.partial(
    models.lora, base_dtype=jnp.bfloat16, rank=2, use_dora=True
)


def _state(model, *, seed):
  """Random base, magnitudes at its norms, as after `model.init`."""
  params = random_params.make(model, seed=seed)
  for path, norm in _norms(model, params).items():
    _set(params, path, norm)
  return states.wrap(params)


def _norms(model, params):
  """By NumPy, from the view of each projection: input axes come by row."""
  norms = {}
  for view in g4.nn.linears(model, params).values():
    row = view.row
    over = [
        a - (row.slot is not None and a > row.slot_axis) for a in row.in_axes
    ]
    base = np.asarray(view.base, np.float64)
    norms[f'{row.lora_path}.m'] = np.sqrt(
        np.sum(np.square(base), axis=tuple(over))
    )
  return norms


def _set(params, path, value):
  *scope, last = path.split('.')
  for key in scope:
    params = params[key]
  params[last] = jnp.asarray(value, params[last].dtype)


@pytest.fixture(scope='module', name='released')
def _released(tmp_path_factory):
  path = tmp_path_factory.mktemp('released') / 'ckpt'
  return path, g4.testing.make_checkpoint(_model().model, path)


def _transforms(path):
  return {
      'SkipLoRA4': g4.ckpts.SkipLoRA4(
          wrapped=gm.ckpts.LoadCheckpoint(path=path)
      ),
      'PartialLoad': g4.ckpts.PartialLoad(path=path),
  }


@pytest.mark.parametrize('name', ['SkipLoRA4', 'PartialLoad'])
@pytest.mark.parametrize('is_abstract', [False, True])
def test_they_follow_the_restored_base(released, name, is_abstract):
  path, written = released
  model = _model()
  state = _state(model, seed=1)
  if is_abstract:
    state = states.abstract(state)
  before = states.specs(state)
  old = training.flat(states.lora_leaves(state))
  out = _transforms(path)[name].transform(state)
  assert states.differing(out.params, written) == []
  for leaf, want in _norms(model, out.params).items():
    got = training.flat(out.params)[leaf]
    np.testing.assert_allclose(got, want, rtol=1e-5, err_msg=leaf)
  for key, leaf in states.lora_leaves(out).items():
    if key[-1] != 'm':
      np.testing.assert_array_equal(leaf, states.lora_leaves(state)[key])
  assert len(old) == len(states.lora_leaves(out))
  if not is_abstract:
    assert states.specs(out) == before


def test_they_follow_on_towers(tmp_path):
  """Each layer of a stacked weight; a layer of audio; what has a bias."""
  base = multimodal.base_of_one_layer('Gemma4_E2B', dtype=jnp.float32)
  targets = ['text', 'vision', 'audio', 'multimodal_projections']
  targets += ['patch_embedding', 'relative_position', 'output_projection']
  model = g4.nn.LoRA(rank=2, use_dora=True, targets=targets, model=base)
  path = tmp_path / 'released'
  g4.testing.make_checkpoint(base, path, seed=3)
  params = random_params.with_towers(model)
  for leaf, norm in _norms(model, params).items():
    _set(params, leaf, norm)
  state = states.wrap(params)
  before = states.specs(state)
  out = _transforms(path)['SkipLoRA4'].transform(state)
  assert states.specs(out) == before
  flat = training.flat(out.params)
  for leaf, want in _norms(model, out.params).items():
    np.testing.assert_allclose(flat[leaf], want, rtol=1e-5, err_msg=leaf)


def test_loaded_ones_stay(released):
  """LoRA leaves from elsewhere, then the base."""
  path, _ = released
  model = _model()
  state = _state(model, seed=1)
  q = 'layer_0.attn.q_einsum.lora.q.m'
  trained = 1.5 * training.flat(state.params)[q]
  _set(state.params, q, trained)
  out = _transforms(path)['SkipLoRA4'].transform(state)
  np.testing.assert_array_equal(training.flat(out.params)[q], trained)
  norms = _norms(model, out.params)
  for leaf, want in norms.items():
    if leaf != q:
      got = training.flat(out.params)[leaf]
      np.testing.assert_allclose(got, want, rtol=1e-5, err_msg=leaf)


def test_a_magnitude_of_no_linear(released):
  path, _ = released
  state = _state(_model(), seed=1)
  state.params['final_norm']['lora'] = {'x': {'m': jnp.ones(3)}}
  with pytest.raises(ValueError, match='final_norm.lora.x.m is a magnitude'):
    _transforms(path)['SkipLoRA4'].transform(state)


def test_trains_and_resumes_bitwise(tmp_path):
  """In the Trainer: 4 steps, and 2 + 2 from Kauldron's own checkpoint."""
  base = models.base(cut=models.one_layer)
  g4.testing.make_checkpoint(base, tmp_path / 'released')
  model = g4.nn.LoRA(
      rank=2, targets=('q', 'down'), use_dora=True, dropout=0.1, model=base
  )

  whole = training.check_resumes_bitwise(
      model, tmp_path, _transforms(tmp_path / 'released')['SkipLoRA4']
  )
  moved = _norms(model, whole.params)
  for leaf, norm in moved.items():
    change = np.abs(training.flat(whole.params)[leaf] - norm).max()
    assert 1e-3 < change < 0.1, leaf  # Five steps of Adam at 1e-2.


def _quantized_model():
  return _model().clone(
      quantize=[g4.quant.NF4('mlp', group_size=2), g4.quant.Int4(group_size=2)]
  )


def test_they_are_norms_of_the_dequantized_base_from_the_start():
  model = _quantized_model()
  model = model.clone(model=models.one_layer(model.model))
  init = jax.jit(model.init)
  params = init(jax.random.key(0), jnp.zeros((1, 3), int))['params']
  norms = _norms(model, params)
  assert len(norms) > 5
  flat = training.flat(params)
  for leaf, want in norms.items():
    np.testing.assert_allclose(flat[leaf], want, rtol=1e-5, err_msg=leaf)


@pytest.mark.parametrize('is_abstract', [False, True])
def test_they_follow_a_quantized_base(is_abstract):
  """What the forward pass sees has other norms than what was quantised."""
  model = _quantized_model()
  plain = model.clone(quantize=None)

  def quantized(state):
    params = _quantized_base.quantize(state.params, model.quantized)
    return dataclasses.replace(state, params=params)

  before = quantized(_state(plain, seed=1))
  for leaf, norm in _norms(model, before.params).items():
    _set(before.params, leaf, norm)
  if is_abstract:
    before = states.abstract(before)
  restored = quantized(_state(plain, seed=2))

  def restore(state):
    return dataclasses.replace(
        state,
        params=peft.merge_params(
            peft.split_params(restored.params).original,
            peft.split_params(state.params).lora,
        ),
    )

  fresh = _followers.fresh(before)
  out = _followers.follow(restore(before), fresh)
  unquantized = _norms(plain, _state(plain, seed=2).params)
  flat = training.flat(out.params)
  for leaf, want in _norms(model, out.params).items():
    np.testing.assert_allclose(flat[leaf], want, rtol=1e-5, err_msg=leaf)
    assert np.abs(unquantized[leaf] / want - 1).max() > 1e-3
