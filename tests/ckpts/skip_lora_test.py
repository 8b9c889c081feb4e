"""The drop-in for `gm.ckpts.SkipLoRA`."""

import dataclasses

from gemma import gm
import jax
import jax.numpy as jnp
from kauldron import kd
import numpy as np
import pytest

from gemma4_lora import g4
from gemma4_lora.gemma4 import _upstream
from gemma4_lora.testing import _checkpoints
from tests.lib import dequantized
from tests.lib import models
from tests.lib import states

_E2B = 'Gemma4_E2B'


def test_state_without_lora(checkpoint):
  """Nothing would train: the message says what to write instead."""
  path, _ = checkpoint(_E2B)
  state = states.make_state(_E2B)
  transform = g4.ckpts.SkipLoRA4(wrapped=gm.ckpts.LoadCheckpoint(path=path))
  with pytest.raises(ValueError, match='`gm.nn.LoRA` of gemma 4.0.*g4.nn.LoRA'):
    transform.transform(state)
  states.assert_usable(state)


def test_quantize(checkpoint):
  path, _ = checkpoint(_E2B)
  transform = g4.ckpts.SkipLoRA4(
      wrapped=gm.ckpts.LoadCheckpoint(path=path, quantize=True)
  )
  with pytest.raises(ValueError, match='quantize=True is not supported'):
    transform.transform(states.make_state(_E2B, lora='ours'))


@pytest.mark.parametrize(
    'wrapped',
    [
        kd.ckpts.SimpleCheckpointLoader(workdir='x', load_opt_state=True),
        kd.ckpts.PartialKauldronLoader(
            workdir='x', new_to_old={'opt_state': 'opt_state'}
        ),
        g4.ckpts.PartialLoad(path='x', new_to_old={'opt_state': 'opt_state'}),
    ],
    ids=lambda x: type(x).__name__,
)
def test_opt_state_is_refused(wrapped):
  """Not dropped in silence, as `gm.ckpts.SkipLoRA` does."""
  transform = g4.ckpts.SkipLoRA4(wrapped=wrapped)
  state = states.make_state(_E2B, lora='ours')
  with pytest.raises(
      ValueError, match='opt_state.* is not supported under LoRA'
  ):
    transform.transform(state)
  states.assert_usable(state)


def test_wrapped_must_be_a_transform():
  with pytest.raises(ValueError, match='wrapped must be a kd.ckpts.InitTransf'):
    g4.ckpts.SkipLoRA4(wrapped='gs://path')


@pytest.mark.parametrize('cls', [gm.ckpts.SkipLoRA, g4.ckpts.SkipLoRA4])
def test_wraps_no_other_of_its_kind(cls):
  inner = cls(wrapped=gm.ckpts.LoadCheckpoint(path='x'))
  with pytest.raises(ValueError, match=f'wrapped is itself a {cls.__name__}'):
    g4.ckpts.SkipLoRA4(wrapped=inner)


def test_settings_of_the_wrapped_loader_are_kept(tmp_path):
  """Step, sub-trees and globs are those of the loader inside."""
  path = tmp_path / 'run'
  with kd.ckpts.Checkpointer(workdir=path, save_interval_steps=1) as ckpt:
    for step in (1, 2):
      ckpt.save(states.make_state(_E2B, seed=step), step=step, force=True)
    ckpt.wait_until_finished()
  want = states.make_state(_E2B, seed=1).params
  state = states.make_state(_E2B, lora='ours')
  own = np.asarray(state.params['final_norm']['scale'])
  transform = g4.ckpts.SkipLoRA4(
      wrapped=kd.ckpts.PartialKauldronLoader(
          workdir=path,
          step=1,
          new_to_old={'params': 'params'},
          ignore_restored_keys=('final_norm.**',),
      )
  )
  out = transform.transform(state)
  assert states.differing(out.params, want) == ['final_norm.scale']
  np.testing.assert_array_equal(out.params['final_norm']['scale'], own)
  # And of the other loader.
  simple = kd.ckpts.SimpleCheckpointLoader(workdir=path, step=1)
  transform = g4.ckpts.SkipLoRA4(wrapped=simple)
  out = transform.transform(states.make_state(_E2B, lora='ours'))
  assert not states.differing(out.params, want)


@pytest.mark.parametrize('lora', ['ours', 'head'])
def test_lora_leaves_of_the_checkpoint_are_left_out(tmp_path, caplog, lora):
  """Of a LoRA run the base is restored, and the log counts the rest."""
  run = states.make_state(_E2B, lora=lora, seed=3)
  with kd.ckpts.Checkpointer(workdir=tmp_path, save_interval_steps=1) as ckpt:
    ckpt.save(run, step=1, force=True)
    ckpt.wait_until_finished()
  state = states.make_state(_E2B, lora='ours')
  before = states.lora_leaves(state)
  caplog.set_level('INFO', logger='absl')
  out = g4.ckpts.SkipLoRA4(
      wrapped=kd.ckpts.SimpleCheckpointLoader(workdir=tmp_path)
  ).transform(state)
  assert all(states.lora_leaves(out)[k] is v for k, v in before.items())
  assert not states.differing(out.params, _base(run.params))
  assert f'left out {len(states.lora_leaves(run))} LoRA leaves' in caplog.text


def _base(params):
  return {
      k: _base(v) if hasattr(v, 'items') else v
      for k, v in params.items()
      if k != 'lora' and not k.startswith('_LoRAEinsum')
  }


@dataclasses.dataclass(frozen=True, kw_only=True)
class _AddOne(kd.ckpts.InitTransform):
  """A transform of the user's own, which knows nothing of LoRA."""

  drop: bool = False

  def transform(self, state):
    params = jax.tree.map(lambda x: x + 1, state.params)
    if self.drop:
      del params['final_norm']
    return state.replace(params=params)

  def transform_after_optimizer(self, state):
    return state.replace(opt_state=state.opt_state + 1)


@pytest.mark.parametrize('lora', ['ours', 'head'])
def test_any_other_transform_sees_the_base_model(lora):
  """It is called without LoRA leaves, before and after the optimizer's init."""
  state = states.make_state(_E2B, lora=lora)
  before = states.specs(state)
  transform = g4.ckpts.SkipLoRA4(wrapped=_AddOne())
  out = transform.transform(state)
  assert states.specs(out) == before
  assert all(
      states.lora_leaves(out)[k] is v
      for k, v in states.lora_leaves(state).items()
  )
  want = jax.tree.map(lambda x: x + 1, _base(state.params))
  assert not states.differing(out.params, want)

  out = transform.transform_after_optimizer(out.replace(opt_state=jnp.ones(2)))
  np.testing.assert_array_equal(out.opt_state, [2, 2])


def test_other_transform_that_changes_the_structure():
  transform = g4.ckpts.SkipLoRA4(wrapped=_AddOne(drop=True))
  with pytest.raises(
      ValueError, match='_AddOne changed structure.*1 leaves'
  ) as e:
    transform.transform(states.make_state(_E2B, lora='ours'))
  assert 'params.final_norm.scale: before ((32,)' in str(e.value)


def test_known_loader_after_the_optimizer(checkpoint):
  path, _ = checkpoint(_E2B)
  state = states.make_state(_E2B, lora='ours')
  transform = g4.ckpts.SkipLoRA4(wrapped=gm.ckpts.LoadCheckpoint(path=path))
  assert transform.transform_after_optimizer(state) is state


@dataclasses.dataclass(frozen=True)
class _Cast(kd.ckpts.InitTransform):
  """A transform that forgets the state's dtype, or its sharding."""

  dtype: str = 'bfloat16'
  device: int = 0

  def transform(self, state):
    def change(x):
      return jax.device_put(x.astype(self.dtype), jax.devices()[self.device])

    return state.replace(params=jax.tree.map(change, state.params))


@pytest.mark.parametrize('kwargs', [{'dtype': 'float32'}, {'device': 3}])
def test_other_transform_that_changes_dtype_or_sharding(kwargs):
  transform = g4.ckpts.SkipLoRA4(wrapped=_Cast(**kwargs))
  with pytest.raises(ValueError, match='_Cast changed structure, shape, dtype'):
    transform.transform(states.make_state(_E2B, lora='ours'))


def test_clip_bounds_are_restored(checkpoint):
  """Of both towers, under LoRA on them: finite ones, as in the file."""
  path, written = checkpoint(_E2B, text_only=False)
  model = g4.nn.LoRA(
      rank=2,
      targets=['vision', 'audio'],
      model=states.model(_E2B, text_only=False),
  )
  params = _checkpoints.random_params(_upstream.abstract_params(model), seed=9)
  state = states.wrap(jax.tree.map(jnp.asarray, params))
  transform = g4.ckpts.SkipLoRA4(wrapped=gm.ckpts.LoadCheckpoint(path=path))
  restored = transform.transform(state)
  assert not states.differing(restored.params, written)
  bounds = {
      keys: x
      for keys, x in states.base_leaves(restored.params).items()
      if keys[-1].startswith('clip_')
  }
  assert {keys[0] for keys in bounds} == {'vision_encoder', 'audio_encoder'}
  assert all(np.isfinite(x).all() for x in bounds.values())
  for keys, x in states.lora_leaves(restored).items():
    np.testing.assert_array_equal(x, states.lora_leaves(state)[keys])


def test_loftq_starts_from_what_the_restore_loses(tmp_path):
  """A times B is the best fit of the file's weight less the quantised one."""
  base = models.base(cut=models.one_layer)
  model = g4.nn.LoRA(
      rank=3,
      model=base,
      targets='q',
      quantize=g4.quant.Int4(group_size=2),
      init_lora_weights='loftq',
  )
  written = g4.testing.make_checkpoint(base, tmp_path / 'base')
  tokens = jnp.ones((1, 3), jnp.int32)
  fresh = jax.jit(model.init)(jax.random.key(0), tokens)['params']
  # A transform uses up what it is given.
  fresh = jax.device_get(fresh)
  first, second = (jax.tree.map(jnp.asarray, fresh) for _ in range(2))
  wrapped = gm.ckpts.LoadCheckpoint(path=str(tmp_path / 'base'))
  with pytest.raises(
      ValueError, match="q.a. It waits .*'loftq'.*model=cfg.ref.model"
  ):
    g4.ckpts.SkipLoRA4(wrapped=wrapped).transform(states.wrap(first))
  transform = g4.ckpts.SkipLoRA4(wrapped=wrapped, model=model)
  restored = transform.transform(states.wrap(second)).params
  q = restored['layer_0']['attn']['q_einsum']
  back = dequantized.array(q['w'])
  lost = np.asarray(written['layer_0']['attn']['q_einsum']['w'], np.float64)
  lost = (lost - back).transpose(1, 0, 2).reshape(back.shape[1], -1)
  u, s, vh = np.linalg.svd(lost, full_matrices=False)
  want = (u[:, :3] * s[:3]) @ vh[:3]
  a, b = q['lora']['q']['a'], q['lora']['q']['b']
  got = np.asarray(a) @ np.asarray(b).reshape(3, -1)
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * abs(want).max())
