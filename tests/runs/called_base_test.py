"""A subclass of a loader is called: training and commands see what it gives."""

import dataclasses
import functools

from gemma import gm
import jax
import jax.numpy as jnp
from kauldron import kd
import numpy as np
import pytest

from gemma4_lora import _trees
from gemma4_lora import g4
from gemma4_lora.gemma4 import _upstream
from gemma4_lora.runs import _export
from gemma4_lora.runs import _quantize
from gemma4_lora.runs import _run
from tests.lib import models
from tests.lib import own_transforms
from tests.lib import runs
from tests.lib import states
from tests.lib import training

_WHO = 'gemma4_lora fuse'


_base_model = functools.partial(models.base, cut=models.one_layer)


@pytest.fixture(scope='module')
def released(tmp_path_factory):
  """Returns `(path of a base, its parameters)`."""
  path = tmp_path_factory.mktemp('released') / 'base'
  # In the layout that gemma's own loader takes.
  return path, g4.testing.make_checkpoint(
      _base_model(), path, layout='nested_bare'
  )


def _trainer(workdir, transform, **kwargs):
  return runs.trainer(
      workdir, base=_base_model(), init_transform=transform, **kwargs
  )


def _assert_same(got, want):
  got, want = training.flat(got), training.flat(want)
  assert got.keys() == want.keys()
  for key, value in want.items():
    np.testing.assert_array_equal(got[key], value, err_msg=key)


def test_all_see_the_same_weights(released, tmp_path):
  """Training, its resume, fuse and chat: those of a base doubled on disk."""
  path, params = released
  on_disk = own_transforms.doubled(jax.tree.map(np.asarray, params))
  g4.testing.make_checkpoint(
      _base_model(), tmp_path / 'doubled', params=on_disk
  )

  def train(name, wrapped, num_train_steps):
    transform = g4.ckpts.SkipLoRA4(wrapped=wrapped)
    made = _trainer(
        tmp_path / name,
        transform,
        num_train_steps=num_train_steps,
        trainstep=training.SharedStep(key=str(tmp_path)),
    )
    return made, made.train()[0]

  called = own_transforms.Doubled(path=path)
  loaded = g4.ckpts.PartialLoad(path=tmp_path / 'doubled')
  train('run', called, 0)
  made, state = train('run', called, 1)
  _, want = train('want', loaded, 1)
  _assert_same(state.params, want.params)

  kwargs = {
      'model': made.model,
      'init_transform': made.init_transform,
      'workdir': tmp_path / 'run',
      'who': _WHO,
  }
  opened = _run.open_run(**kwargs)
  assert 'Doubled.transform' in opened.where
  # Before the last step.
  had = jax.tree.map(jnp.asarray, _trees.merge(on_disk, opened.lora))
  _export.export(tmp_path / 'fused', **kwargs)
  shapes = _upstream.abstract_params(_base_model())
  fused = g4.ckpts.PartialLoad(path=tmp_path / 'fused').transform(
      states.wrap(shapes)
  )
  _assert_same(fused.params, g4.nn.fuse_params(made.model, had))
  for sharding in (None, kd.sharding.REPLICATED):
    _assert_same(_export.params_of(opened, sharding=sharding, who=_WHO), had)


@pytest.mark.parametrize(
    'make',
    [
        lambda path: own_transforms.Doubled(path=path),
        lambda path: g4.ckpts.SkipLoRA4(
            wrapped=own_transforms.DoubledOfGemma(path=path)
        ),
        lambda path: gm.ckpts.SkipLoRA(
            wrapped=own_transforms.Doubled(path=path)
        ),
        lambda path: own_transforms.DoubledSkip(
            wrapped=g4.ckpts.PartialLoad(path=path)
        ),
        lambda path: kd.ckpts.MultiTransform(
            base=g4.ckpts.SkipLoRA4(
                wrapped=kd.ckpts.MultiTransform(
                    base=own_transforms.Doubled(path=path)
                )
            )
        ),
        lambda path: kd.ckpts.MultiTransform(
            base=g4.ckpts.PartialLoad(path=path),
            more=_Double(),
        ),
    ],
    ids=['bare', 'of gemma', 'in SkipLoRA', 'SkipLoRA4', 'in many', 'after'],
)
def test_each_place_in_an_init_transform(make, released):
  """The base alone, as `export hf_base` and `check` read it."""
  path, params = released
  model = g4.nn.LoRA(rank=2, targets='q', model=_base_model())
  opened = _run.open_run(model, make(path), workdir=None, who=_WHO)
  assert opened.where.endswith('.transform')
  got = _export.params_of(opened, who=_WHO)
  _assert_same(got, own_transforms.doubled(params))


def test_the_base_alone_is_called_without_quantising(released):
  """As `fuse` without a run reads it: a run would have rounded its weights."""
  path, _ = released
  model = g4.nn.LoRA(rank=2, targets='q', quantize='int8', model=_base_model())
  opened = _run.open_run(
      model, own_transforms.Doubled(path=path), workdir=None, who=_WHO
  )
  assert not any(x.place.stored.encoding for x in opened.leaves)


@dataclasses.dataclass(frozen=True)
class _Double(kd.ckpts.InitTransform):
  """Doubles a weight, whoever restored it."""

  def transform(self, state):
    return state.replace(params=own_transforms.doubled(state.params))


def test_quantize_writes_what_the_transform_gives(released, tmp_path):
  path, params = released
  model = g4.nn.LoRA(rank=2, targets='q', quantize='int8', model=_base_model())
  text = _quantize.quantize_checkpoint(
      tmp_path / 'int8',
      model=model,
      init_transform=g4.ckpts.SkipLoRA4(
          wrapped=own_transforms.Doubled(path=path, leaf=own_transforms.NORM)
      ),
      who='gemma4_lora quantize',
  )
  assert 'the base of Doubled, quantize=g4.quant.Int8()' in text
  shapes, _ = _trees.split_lora(_upstream.abstract_params(model))
  load = g4.ckpts.PartialLoad(path=tmp_path / 'int8')
  got = load.transform(states.wrap(shapes)).params
  np.testing.assert_array_equal(
      got['final_norm']['scale'], params['final_norm']['scale'] * 2
  )


def test_quantize_doubles_a_weight_that_it_quantises(released, tmp_path):
  """The transform multiplies an array; training would give it codes."""
  path, _ = released
  model = g4.nn.LoRA(rank=2, targets='q', quantize='int8', model=_base_model())
  codes = {}
  for name, load in {
      'plain': g4.ckpts.PartialLoad(path=path),
      'doubled': own_transforms.Doubled(path=path),
  }.items():
    _quantize.quantize_checkpoint(
        tmp_path / name,
        model=model,
        init_transform=g4.ckpts.SkipLoRA4(wrapped=load),
        who=_WHO,
    )
    shapes, _ = _trees.split_lora(_upstream.abstract_params(model))
    load = g4.ckpts.PartialLoad(path=tmp_path / name)
    params = load.transform(states.wrap(shapes)).params
    codes[name] = _trees.flatten(params)
  weight = own_transforms.DOUBLED
  for leaf, value in codes['plain'].items():
    factor = 2 if leaf == (*weight, 'scales') else 1
    np.testing.assert_array_equal(codes['doubled'][leaf], value * factor)


def test_what_pissa_took_is_not_given_back(released):
  path, _ = released
  model = g4.nn.LoRA(
      rank=2, targets='q', init_lora_weights='pissa', model=_base_model()
  )
  transform = g4.ckpts.SkipLoRA4(
      wrapped=own_transforms.Doubled(path=path), model=model
  )
  with pytest.raises(
      ValueError,
      match="has Doubled, .* with init_lora_weights='pissa' .*before",
  ):
    _run.open_run(model, transform, workdir=None, who=_WHO)


@dataclasses.dataclass(frozen=True)
class _Halfway(kd.ckpts.InitTransform):
  """Sets nothing."""

  def transform(self, state):
    return state


@pytest.mark.parametrize(
    ('transform', 'match'),
    [
        (
            _Halfway(),
            r'has _Halfway.*left \d+ leaves .* without a value(?s:.*)fuse_params',
        ),
        (_Double(), r'has _Double.*It failed: TypeError(?s:.*)PartialLoad\('),
    ],
)
def test_what_cannot_be_called_is_an_error(transform, match):
  model = g4.nn.LoRA(rank=2, targets='q', model=_base_model())
  with pytest.raises(ValueError, match=match):
    _run.open_run(model, transform, workdir=None, who=_WHO)
