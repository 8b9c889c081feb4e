"""What every transform keeps, over all variants, layouts and LoRA trees."""

from gemma import gm
import jax
from kauldron import kd
import numpy as np
import pytest

from gemma4_lora import _trees
from gemma4_lora import g4
from tests.lib import states

_TRANSFORMS = {
    'PartialLoad': lambda path: g4.ckpts.PartialLoad(path=path),
    'SkipLoRA4(LoadCheckpoint)': lambda path: g4.ckpts.SkipLoRA4(
        wrapped=gm.ckpts.LoadCheckpoint(path=path)
    ),
    'SkipLoRA4(PartialLoad)': lambda path: g4.ckpts.SkipLoRA4(
        wrapped=g4.ckpts.PartialLoad(path=path)
    ),
    'SkipLoRA4(PartialKauldronLoader)': lambda path: g4.ckpts.SkipLoRA4(
        wrapped=kd.ckpts.PartialKauldronLoader(workdir=path)
    ),
    'SkipLoRA4(SimpleCheckpointLoader)': lambda path: g4.ckpts.SkipLoRA4(
        wrapped=kd.ckpts.SimpleCheckpointLoader(workdir=path)
    ),
}

# Every variant, and every layout of those whose leaves differ: E4B's are E2B's.
_CHECKPOINTS = [
    (variant, layout)
    for variant in states.VARIANTS
    for layout in states.LAYOUTS
    if variant != 'Gemma4_E4B' or layout == 'nested'
]


# What opens a layout knows neither of the transform nor of LoRA: all transforms
# on two layouts, all kinds of LoRA leaves on one.
_CASES = [
    (variant, layout, lora)
    for variant, layout in _CHECKPOINTS
    for lora in (None, 'ours', 'head')
    if layout == 'nested' or lora == 'ours'
]


def _transforms(layout, lora):
  if lora is None:
    return ['PartialLoad']
  if layout in ('nested', 'kauldron'):
    return list(_TRANSFORMS)
  return ['SkipLoRA4(LoadCheckpoint)']


@pytest.mark.parametrize(('variant', 'layout', 'lora'), _CASES)
def test_restores_base_and_nothing_else(checkpoint, variant, layout, lora):
  """Structure, shapes, dtypes, shardings and LoRA stay; base is the file's."""
  path, params = checkpoint(variant, layout)
  for name in _transforms(layout, lora):
    state = states.make_state(variant, lora=lora)
    before, lora_before = states.specs(state), states.lora_leaves(state)
    structure = jax.tree.structure(state)

    out = _TRANSFORMS[name](path).transform(state)

    assert jax.tree.structure(out) == structure, name
    assert states.specs(out) == before, name
    assert not states.differing(out.params, params), name
    lora_after = states.lora_leaves(out)
    assert bool(lora_before) == (lora is not None)
    assert all(lora_after[k] is v for k, v in lora_before.items()), name
    assert out.step is state.step


@pytest.mark.parametrize(('variant', 'layout'), _CHECKPOINTS)
def test_leaves_no_abstract_leaf(checkpoint, variant, layout):
  """Of a state of shapes, as `jax.eval_shape` makes it, all leaves get values."""
  path, params = checkpoint(variant, layout)
  state = states.abstract(states.make_state(variant, lora='ours'))

  out = g4.ckpts.PartialLoad(path=path).transform(state)

  leaves = jax.tree.leaves(out)
  assert not any(isinstance(x, jax.ShapeDtypeStruct) for x in leaves)
  assert not states.differing(out.params, params)


@pytest.mark.parametrize(
    ('variant', 'layout'),
    [x for x in _CHECKPOINTS if x[1] in ('nested', 'stacked', 'kauldron')],
)
def test_fills_every_shard(checkpoint, variant, layout):
  """Under FSDP on eight devices each device has its own part of the file's."""
  path, params = checkpoint(variant, layout)
  sharding = kd.sharding.FSDPSharding(min_size_to_shard_mb=0)
  state = states.make_state(variant, lora='ours', sharding=sharding)
  before = states.specs(state)
  assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(state))

  transform = g4.ckpts.SkipLoRA4(wrapped=gm.ckpts.LoadCheckpoint(path=path))
  out = transform.transform(state)

  assert states.specs(out) == before
  want = states.base_leaves(params)
  for key, leaf in _trees.flatten(out.params).items():
    if not _trees.is_lora(key):
      assert len(leaf.addressable_shards) == 8
      for shard in leaf.addressable_shards:
        part = want[key][shard.index]
        assert np.asarray(shard.data).tobytes() == part.tobytes()


@pytest.mark.parametrize('layout', states.LAYOUTS)
@pytest.mark.parametrize('variant', ['Gemma4_E2B', 'Gemma4_31B'])
def test_leaves_towers_out(checkpoint, caplog, variant, layout):
  """A multimodal checkpoint fits a text-only model, and the log says how."""
  path, params = checkpoint(variant, layout, text_only=False)
  state = states.make_state(variant, lora='ours')
  caplog.set_level('INFO', logger='absl')

  out = g4.ckpts.PartialLoad(path=path).transform(state)

  got = states.base_leaves(out.params)
  want = states.base_leaves(params)
  assert all(want[k].tobytes() == v.tobytes() for k, v in got.items())
  towers = len(want) - len(got)
  assert towers > 10
  assert f'left out {towers} leaves of towers' in caplog.text


@pytest.mark.parametrize('layout', states.LAYOUTS)
@pytest.mark.parametrize('variant', ['Gemma4_E2B', 'Gemma4_31B'])
def test_restores_towers(checkpoint, variant, layout):
  """Into a multimodal model the towers are restored like all else."""
  path, params = checkpoint(variant, layout, text_only=False)
  state = states.make_state(variant, text_only=False)

  out = g4.ckpts.PartialLoad(path=path).transform(state)

  assert not states.differing(out.params, params)
