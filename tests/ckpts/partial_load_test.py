"""The general transform: its arguments, sub-trees and globs."""

import json

import jax
import jax.numpy as jnp
from kauldron import kd
from kauldron import konfig
import numpy as np
import optax
import pytest

from gemma4_lora import g4
from gemma4_lora.testing import _checkpoints
from tests.lib import states

_E2B = 'Gemma4_E2B'


def _fails(match, *, state=None, **kwargs):
  state = state or states.make_state(_E2B, lora='ours')
  with pytest.raises(ValueError, match=match):
    g4.ckpts.PartialLoad(**kwargs).transform(state)
  states.assert_usable(state)


@pytest.mark.parametrize('arg', ['missing', 'unexpected'])
def test_choices(arg):
  with pytest.raises(
      ValueError, match=rf"PartialLoad: {arg} must be one of \('error', 'warn'"
  ):
    g4.ckpts.PartialLoad(path='x', **{arg: 'ignore'})


def test_step_is_a_step():
  with pytest.raises(ValueError, match='step must be -1 .* got -2'):
    g4.ckpts.PartialLoad(path='x', step=-2)


def test_globs_are_a_tuple():
  with pytest.raises(ValueError, match='ignore_model_keys must be a tuple'):
    g4.ckpts.PartialLoad(path='x', ignore_model_keys='**.scale')


def test_is_hashable():
  """Kauldron passes the trainer, transform included, as static argument."""
  load = g4.ckpts.PartialLoad(
      path='x', new_to_old={'params': 'params'}, ignore_model_keys=['**.a']
  )
  assert hash(load) == hash(
      g4.ckpts.PartialLoad(
          path='x', new_to_old={'params': 'params'}, ignore_model_keys=('**.a',)
      )
  )


def test_config_survives_json(checkpoint):
  """Built in a config, saved with the run and read back, it still restores."""
  path, params = checkpoint(_E2B)
  with konfig.imports():
    # pylint: disable=g-import-not-at-top,reimported,redefined-outer-name
    from gemma import gm

    from gemma4_lora import g4 as g4_config

  cfg = konfig.ConfigDict(
      {
          'a': g4_config.ckpts.SkipLoRA4(
              wrapped=gm.ckpts.LoadCheckpoint(path=str(path))
          ),
          'b': g4_config.ckpts.PartialLoad(
              path=str(path),
              missing='warn',
              new_to_old={'params': 'params'},
              ignore_restored_keys=('embedder.**',),
          ),
      }
  )
  resolved = konfig.resolve(konfig.ConfigDict(json.loads(cfg.to_json())))
  assert isinstance(resolved['a'], g4.ckpts.SkipLoRA4)
  assert resolved['b'] == g4.ckpts.PartialLoad(
      path=str(path),
      missing='warn',
      new_to_old={'params': 'params'},
      ignore_restored_keys=('embedder.**',),
  )
  out = resolved['a'].transform(states.make_state(_E2B, lora='ours'))
  assert not states.differing(out.params, params)
  resolved['b'].transform(states.make_state(_E2B, lora='ours'))


def test_ignore_model_keys(checkpoint, tmp_path):
  """A leaf that the checkpoint may lack keeps the state's value."""
  del checkpoint
  params = _checkpoints.random_params(
      _checkpoints.abstract_params(states.model(_E2B))
  )
  del params['layer_1']['skip_scale']
  g4.testing.make_checkpoint(states.model(_E2B), tmp_path / 'c', params=params)
  state = states.make_state(_E2B, lora='ours')
  own = np.asarray(state.params['layer_1']['skip_scale'])
  load = g4.ckpts.PartialLoad(
      path=tmp_path / 'c', ignore_model_keys=('**.skip_scale',)
  )
  out = load.transform(state).params
  np.testing.assert_array_equal(out['layer_1']['skip_scale'], own)
  # Where the checkpoint has it, it is taken, as in PartialKauldronLoader.
  np.testing.assert_array_equal(
      out['layer_2']['skip_scale'], params['layer_2']['skip_scale']
  )


@pytest.mark.parametrize(
    'glob',
    [
        'layer_1.mlp.linear',  # As in the model.
        'layer_1.mlp.linear.w',  # As in the file.
        'layer_1.*.linear',
        '**.linear',
        'layer_1.mlp',
    ],
)
@pytest.mark.parametrize('layout', ['nested', 'nested_bare', 'stacked'])
def test_ignore_restored_keys(checkpoint, layout, glob):
  """A leaf of the file that is ignored leaves the state's own value."""
  path, params = checkpoint(_E2B, layout)
  state = states.make_state(_E2B, lora='ours')
  own = np.asarray(state.params['layer_1']['mlp']['linear'])
  load = g4.ckpts.PartialLoad(path=path, ignore_restored_keys=(glob,))
  out = load.transform(state).params
  np.testing.assert_array_equal(out['layer_1']['mlp']['linear'], own)
  np.testing.assert_array_equal(
      out['layer_1']['attn']['q_einsum']['w'],
      params['layer_1']['attn']['q_einsum']['w'],
  )


def test_ignored_abstract_leaf_is_filled(checkpoint, caplog):
  """No leaf stays without a value, and the warning says which was filled."""
  path, _ = checkpoint(_E2B)
  state = states.abstract(states.make_state(_E2B, lora='ours'))
  load = g4.ckpts.PartialLoad(
      path=path, ignore_restored_keys=('final_norm.**',)
  )
  out = load.transform(state)
  assert np.all(np.asarray(out.params['final_norm']['scale']) == 1)
  assert 'ignored and have no value: filled' in caplog.text
  assert 'params.final_norm.scale (32,)' in caplog.text


@pytest.mark.parametrize('arg', ['ignore_model_keys', 'ignore_restored_keys'])
def test_glob_that_matches_nothing(checkpoint, arg):
  """A typo is not silent."""
  path, _ = checkpoint(_E2B)
  _fails(
      rf"{arg}: 'final_nrm.scale' matches none of .*'final_norm.scale'",
      path=path,
      **{arg: ('**.skip_scale', 'final_nrm.scale')},
  )


def test_glob_of_lora_leaves_is_no_typo(checkpoint):
  """Configs of PartialKauldronLoader have it, and it is true."""
  path, params = checkpoint(_E2B)
  load = g4.ckpts.PartialLoad(path=path, ignore_model_keys=('**.lora.**',))
  out = load.transform(states.make_state(_E2B, lora='ours'))
  assert not states.differing(out.params, params)


def test_invalid_glob(checkpoint):
  path, _ = checkpoint(_E2B)
  _fails(
      r"PartialLoad: ignore_model_keys: 'layer_\*.mlp' is not a glob",
      path=path,
      ignore_model_keys=('layer_*.mlp',),
  )


@pytest.mark.parametrize('layout', states.LAYOUTS)
def test_new_to_old_sub_tree(checkpoint, layout):
  """Only the listed sub-trees are restored, from where they are said to be."""
  path, params = checkpoint(_E2B, layout)
  state = states.make_state(_E2B, lora='ours')
  own = np.asarray(state.params['layer_1']['mlp']['linear'])
  load = g4.ckpts.PartialLoad(
      path=path, new_to_old={'params.layer_0': 'params.layer_1'}
  )
  out = load.transform(state).params
  assert not states.differing(out['layer_0'], params['layer_1'])
  np.testing.assert_array_equal(out['layer_1']['mlp']['linear'], own)


def test_new_to_old_twice_the_same(checkpoint):
  """One leaf of the file may go to several of the state."""
  path, params = checkpoint(_E2B)
  one = states.make_state(_E2B).params
  state = states.wrap({'policy': one, 'anchor': jax.tree.map(jnp.copy, one)})
  load = g4.ckpts.PartialLoad(
      path=path,
      new_to_old={'params.policy': 'params', 'params.anchor': 'params'},
  )
  out = load.transform(state).params
  assert not states.differing(out['policy'], params)
  assert not states.differing(out['anchor'], params)


def test_new_to_old_typos(checkpoint):
  path, _ = checkpoint(_E2B)
  _fails(
      r"the state has no 'params.layer_O'. Did you mean \['params.layer_",
      path=path,
      new_to_old={'params.layer_O': 'params.layer_0'},
  )
  _fails(
      r"the checkpoint has no 'parms'; it has \['params'\]. Did you mean",
      path=path,
      new_to_old={'params': 'parms'},
  )


def test_new_to_old_overlap(checkpoint):
  """A leaf has one source."""
  path, _ = checkpoint(_E2B)
  _fails(
      "'params.layer_0' is within 'params'",
      path=path,
      new_to_old={'params': 'params', 'params.layer_0': 'params.layer_1'},
  )


def test_collections_that_the_checkpoint_lacks(checkpoint):
  """Collections of a model are not in released checkpoints: the way out."""
  path, _ = checkpoint(_E2B)
  state = states.make_state(_E2B).replace(
      collections={'stats': {'mean': jnp.ones(3)}}
  )
  _fails(r"new_to_old=\{'params': 'params'\}", path=path, state=state)


def test_state_leaf_that_is_no_array(checkpoint):
  path, _ = checkpoint(_E2B)
  state = states.make_state(_E2B)
  state.params['final_norm']['scale'] = 3.0
  _fails(
      'params.final_norm.scale is no array but a float', path=path, state=state
  )


def test_abstract_lora_leaf(checkpoint):
  """The checkpoint has no value for a LoRA leaf that has none."""
  path, _ = checkpoint(_E2B)
  state = states.make_state(_E2B)
  shape = jax.ShapeDtypeStruct((2, 2), jnp.float32)
  state.params['layer_0']['mlp']['lora'] = {'gate': {'a': shape}}
  _fails(
      'layer_0.mlp.lora.gate.a is a LoRA leaf without', path=path, state=state
  )


def test_under_jit(checkpoint):
  path, _ = checkpoint(_E2B)
  load = g4.ckpts.PartialLoad(path=path)
  with pytest.raises(
      ValueError, match='is being traced: call the transform out'
  ):
    jax.jit(load.transform)(states.make_state(_E2B))


def _run(path, params):
  """Saves a run that trained all leaves; returns its state."""
  optimizer = optax.adam(1e-3)
  opt_state = optimizer.init(params)
  opt_state = jax.tree.map(lambda x: x + jnp.ones_like(x), opt_state)
  state = states.wrap(params).replace(opt_state=opt_state)
  with kd.ckpts.Checkpointer(workdir=path, save_interval_steps=1) as ckpt:
    ckpt.save(state, step=5, force=True)
    ckpt.wait_until_finished()
  return state


_ALL = {'params': 'params', 'opt_state': 'opt_state'}


def test_opt_state(tmp_path):
  """In full fine-tuning the optimizer's state is restored after its init."""
  run = _run(tmp_path, states.make_state(_E2B).params)
  load = g4.ckpts.PartialLoad(path=tmp_path, new_to_old=_ALL)
  state = states.make_state(_E2B, seed=5)
  state = load.transform(state)
  assert not states.differing(state.params, run.params)
  state = state.replace(opt_state=optax.adam(1e-3).init(state.params))
  structure = jax.tree.structure(state)
  state = load.transform_after_optimizer(state)
  assert jax.tree.structure(state) == structure
  jax.tree.map(np.testing.assert_array_equal, state.opt_state, run.opt_state)


def test_opt_state_is_not_touched_by_default(checkpoint):
  path, _ = checkpoint(_E2B)
  state = states.make_state(_E2B)
  load = g4.ckpts.PartialLoad(path=path)
  assert load.transform_after_optimizer(state) is state


def test_opt_state_under_lora(tmp_path):
  """Moments of LoRA leaves that were not restored would mislead: refused."""
  load = g4.ckpts.PartialLoad(path=tmp_path, new_to_old=_ALL)
  state = states.make_state(_E2B, lora='ours')
  with pytest.raises(ValueError, match="Drop 'opt_state' from new_to_old"):
    load.transform_after_optimizer(state)
