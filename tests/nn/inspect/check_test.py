"""`g4.nn.check`: each kind of LoRA that does nothing, or not all, is named."""

import functools
import json

from gemma import peft
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from gemma4_lora import g4
from gemma4_lora.nn.inspect import _agreement
from tests.lib import models
from tests.lib import random_params

_model = functools.partial(
    models.lora, rank=2, alpha=4, targets=['q', 'v', 'down']
)


def _without_base(params):
  return peft.split_params(params).lora


def _moe():
  model = _model('Gemma4_26B_A4B', targets='experts')
  return model, _without_base(random_params.make(model))


@pytest.fixture(scope='module', name='sound')
def _sound():
  model = _model()
  return model, random_params.make(model)


def _with(params, change):
  """Returns parameters with each LoRA leaf as `change(path, leaf)` says."""

  def new(keys, x):
    path = jax.tree_util.keystr(keys, simple=True, separator='.')
    return change(path, x) if '.lora.' in path else x

  return jax.tree_util.tree_map_with_path(new, params)


def _zero(*ends):
  return lambda path, x: 0 * x if path.endswith(ends) else x


def test_a_sound_one(sound):
  model, params = sound
  report = g4.nn.check(model, params)
  assert report.ok and not report.problems
  assert report.logits['base_vs_adapter'] > 0.01
  assert report.logits['adapter_vs_fused'] < 1e-4
  assert 'OK: all 5 projections' in str(report)
  assert 'LoRA changes them by' in str(report)
  shown = report._repr_html_()
  assert shown.startswith('<p><b>OK: all 5 projections')
  assert shown.count('<tr>') == 4  # A head, and q, v, down.
  # By the product itself.
  view = g4.nn.linears(model, params)['layer_0.attn.v']
  product = view.scale * np.einsum('dr,rkh->dkh', view.lora_a, view.lora_b)
  (row,) = [x for x in report.rows if x.name == 'layer_0.attn.v']
  np.testing.assert_allclose(row.norm, np.linalg.norm(product), rtol=1e-5)
  np.testing.assert_allclose(
      row.relative, row.norm / np.linalg.norm(view.base), rtol=1e-5
  )


def test_b_of_zero_does_nothing(sound):
  model, params = sound
  report = g4.nn.check(model, _with(params, _zero('.b')))
  assert not report.ok
  text = str(report)
  assert 'LoRA does nothing: B·A is zero in all 5 projections' in text
  assert 'with and without LoRA are the same' in text
  assert 'NOT OK: 2 problems' in text


def test_some_b_of_zero(sound):
  model, params = sound
  report = g4.nn.check(model, _with(params, _zero('layer_1.mlp.lora.down.b')))
  assert 'zero in 1 of 5 projections: layer_1.mlp.down' in str(report)


def test_half_the_experts_missing():
  model, params = _moe()

  def half(path, x):
    return x.at[::2].set(0) if path.endswith('expert_up.b') else x

  report = g4.nn.check(model, _with(params, half))
  assert 'layer_0.mlp.expert_up (3 of 6)' in str(report)
  assert {x.num_parts for x in report.rows} == {6}  # The former name.
  assert not report.ok
  assert g4.nn.check(model, params).ok


def test_an_expert_without_tokens_is_a_note():
  model, params = _moe()
  report = g4.nn.check(
      model,
      _with(
          params,
          lambda k, x: x.at[0].set(0) if k.endswith('expert_up.b') else x,
      ),
  )
  assert report.ok
  assert 'Experts or layers without effect: layer_0.mlp.expert_up (1 of' in (
      str(report)
  )


def test_nan(sound):
  model, params = sound
  broken = _with(
      params, lambda k, x: x.at[0].set(jnp.nan) if k.endswith('v.a') else x
  )
  report = g4.nn.check(model, broken)
  assert 'NaN or infinite values in 1 projections: layer_0.attn.v' in (
      str(report)
  )


@pytest.mark.parametrize(
    ('targets', 'message'),
    [
        (['q', 'v', 'down', 'gate'], '4 of 14 LoRA leaves .* are missing'),
        (['q', 'v'], 'not in the model, which would ignore them: .*down'),
    ],
)
def test_leaves_of_other_targets(sound, targets, message):
  _, params = sound
  report = g4.nn.check(_model(targets=targets), params)
  assert not report.ok
  with pytest.raises(AssertionError, match=message):
    assert report.ok, report.problems


def test_another_rank(sound):
  model, params = sound
  report = g4.nn.check(model.clone(rank=3), params)
  assert 'another shape: layer_0.attn.q_einsum.lora.q.a (40, 2), model' in (
      str(report)
  )


def test_weights_fused_with_something_else(sound):
  model, params = sound
  other = g4.nn.fuse_params(model, _with(params, lambda _, x: 2 * x))
  report = g4.nn.check(model, params, fused=other)
  assert 'Fused weights give other logits than LoRA' in str(report)


@pytest.fixture(scope='module', name='rounded')
def _rounded():
  """In bfloat16, with a LoRA that is larger than the base."""
  base = models.base()
  model = g4.nn.LoRA(rank=2, targets=['q', 'v', 'down'], model=base)
  return model, random_params.make(model)


def test_rounding_of_a_large_lora_is_no_problem(rounded):
  """Logits are as far apart as a last bit of the weights makes them."""
  model, params = rounded
  large = _with(params, lambda _, x: x + 0.5)
  report = g4.nn.check(model, large)
  assert report.logits['adapter_vs_fused'] > 0.02
  assert report.ok, report.problems
  assert 'is no fault: rounding the adapted weights to bfloat16' in str(report)
  # Which does not hide the scale of another alpha.
  other = g4.nn.fuse_params(model.clone(alpha=1), large)
  report = g4.nn.check(model, large, fused=other)
  assert 'fused weights are not the sum of base and LoRA' in str(report)


@pytest.mark.parametrize('size', [1, 0.01], ids=['large', 'small'])
def test_a_branch_that_fusing_dropped(rounded, size):
  """Whether or not the logits tell it from rounding."""
  model, params = rounded
  params = _with(params, lambda k, x: size * x if k.endswith('.b') else x)
  fused = g4.nn.fuse_params(model, params)
  assert g4.nn.check(model, params, fused=fused).ok
  # In another dtype, which rounds otherwise.
  wide = g4.nn.fuse_params(
      model, jax.tree.map(lambda x: x.astype(jnp.float32), params)
  )
  if size == 1:
    assert g4.nn.check(model, params, fused=wide).ok
  fused['layer_1']['mlp']['linear'] = params['layer_1']['mlp']['linear']
  report = g4.nn.check(model, params, fused=fused)
  assert (
      '1 fused weights are not the sum of base and LoRA: layer_1.mlp.linear (by'
      ' 100% of what LoRA changes)' in str(report)
  )


def test_fused_weights_of_another_shape(sound):
  model, params = sound
  fused = g4.nn.fuse_params(model, params)
  other = fused['layer_1']['mlp']['linear'][:, :1]
  fused['layer_1']['mlp']['linear'] = other
  (problem,) = _agreement.not_fused(model, *peft.split_params(params), fused)
  assert 'layer_1.mlp.linear has shape (56, 1), not' in problem


def test_without_the_base(sound):
  model, params = sound
  report = g4.nn.check(model, _without_base(params))
  assert report.ok
  assert 'logits were not compared' in str(report)


def test_copies_that_were_not_trained():
  model = _model(targets='q', modules_to_save='final_norm')
  params = random_params.make(model)
  params['final_norm']['lora']['scale'] = params['final_norm']['scale']
  report = g4.nn.check(model, params)
  assert 'zero in 1 of 3 projections: final_norm' in str(report)


def test_takes_a_lora():
  with pytest.raises(ValueError, match='takes a g4.nn.LoRA. Got: Gemma4_31B'):
    g4.nn.check(g4.testing.Gemma4_31B(), {})


# -------------------------------- Files -----------------------------------


@pytest.fixture(name='saved')
def _saved(sound, tmp_path):
  model, params = sound
  lora = _without_base(params)
  path = tmp_path / 'lora'
  g4.hf.save_peft(path, model=model, params=lora)
  return model, lora, path


def _rewrite(path, edit):
  file = path / 'adapter_model.safetensors'
  tensors = edit(safetensors.numpy.load_file(file))
  safetensors.numpy.save_file(tensors, file)


def test_a_file_of_the_same(saved):
  model, lora, path = saved
  report = g4.nn.check(model, lora, file=path)
  assert report.ok
  assert '5 projections in 5 modules, named for Gemma4ForConditional' in (
      str(report)
  )


def test_a_file_with_names_that_a_server_would_ignore(saved):
  """Without the prefix of the tower: PEFT loads, and says nothing."""
  model, lora, path = saved
  _rewrite(
      path,
      lambda tensors: {
          k.replace('layers.', 'blocks.'): v for k, v in tensors.items()
      },
  )
  report = g4.nn.check(model, lora, file=path)
  assert '5 modules that the model does not have' in str(report)


def test_a_file_that_lacks_some(saved, tmp_path):
  model, lora, _ = saved
  fewer = _model(targets=['q', 'v'])
  path = tmp_path / 'fewer'
  params = random_params.make(fewer)
  g4.hf.save_peft(path, model=fewer, params=_without_base(params))
  text = str(g4.nn.check(model, lora, file=path))
  assert 'has 3 projections and the model 5: 2 are missing: layer_0.mlp' in text
  report = g4.nn.check(fewer, _without_base(params), file=saved[2])
  assert '2 projections that the model does not adapt' in str(report)


def test_a_file_of_another_step_or_scale(saved):
  model, lora, path = saved
  _rewrite(path, lambda tensors: {k: 2 * v for k, v in tensors.items()})
  text = str(g4.nn.check(model, lora, file=path))
  assert 'other values than the model in 10 of 10 leaves' in text
  config = json.loads((path / 'adapter_config.json').read_text())
  config['lora_alpha'] = 5
  (path / 'adapter_config.json').write_text(json.dumps(config))
  text = str(g4.nn.check(model, lora, file=path))
  assert 'another scale for 5 projections: layer_0.attn.q 2.5, model 2' in text


def test_no_file(saved):
  model, lora, path = saved
  report = g4.nn.check(model, lora, file=path / 'nowhere')
  assert 'nowhere does not exist' in str(report)
