"""LoRA alone on disk, all of the state back, and never a mix."""

import dataclasses
import json
import os
import pathlib
import resource
import shutil
from typing import Any

import jax
import jax.numpy as jnp
from kauldron import kd
from kauldron.train import checkpoint_state
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from gemma4_lora import _trees
from gemma4_lora import g4
from gemma4_lora.ckpts.lora import _lora_item
from gemma4_lora.host import _intact
from tests.lib import models
from tests.lib import runs
from tests.lib import states


@pytest.fixture(scope='module', name='released')
def _released(tmp_path_factory):
  """Returns the path of a base, and its values."""
  path = tmp_path_factory.mktemp('base') / 'released'
  return path, g4.testing.make_checkpoint(models.base(), path)


@pytest.fixture(name='saved')
def _saved(released, tmp_path):
  """Returns a workdir with step 3, and the state that was saved there."""
  trainer = runs.trainer(tmp_path / 'run', released[0])
  state = runs.state(trainer, seed=3, params=released[1])
  trainer.checkpointer.save(_item(trainer, state), step=3)
  trainer.checkpointer.close()
  return tmp_path / 'run', state


@pytest.fixture(scope='module', name='plain')
def _plain(tmp_path_factory):
  """Returns a workdir of Kauldron's own checkpointer, and what it saved."""
  workdir = tmp_path_factory.mktemp('plain')
  state = runs.state(runs.trainer(workdir), seed=3)
  with kd.ckpts.Checkpointer(workdir=workdir, save_interval_steps=1) as ckpt:
    ckpt.save(state, step=3)
  return workdir, state


def _restore(trainer, state, **kwargs):
  try:
    return trainer.checkpointer.restore(state, **kwargs)
  finally:
    trainer.checkpointer.close()


def _assert_equal(got, want):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  jax.tree.map(np.testing.assert_array_equal, got, want)


def _num_bytes(path):
  # As `du`: folders count, too.
  return sum(p.stat().st_size for p in [path, *path.rglob('*')])


@pytest.mark.parametrize(
    'lora', [{}, {'init_lora_weights': 'pissa'}, {'use_dora': True}], ids=str
)
def test_all_comes_back(lora, released, tmp_path):
  """Base from init_transform, the rest from disk; bit for bit."""
  trainer = runs.trainer(tmp_path / 'run', released[0], lora=lora)
  start = trainer.init_transform.transform(
      runs.state(trainer, seed=0, params=jax.tree.map(jnp.copy, released[1]))
  )
  base = _trees.split_lora(start.params)[0]
  state = runs.state(trainer, seed=3, params=base)
  assert bool(lora.get('init_lora_weights')) == bool(
      states.differing(base, released[1])
  )
  trainer.checkpointer.save(state, step=3)
  trainer.checkpointer.close()

  trainer = runs.trainer(tmp_path / 'run', released[0], lora=lora)
  fresh = runs.state(trainer, seed=0)
  shardings = [x.sharding for x in jax.tree.leaves(fresh)]
  got = trainer.checkpointer.restore(fresh)
  _assert_equal(got, state)
  assert [x.sharding for x in jax.tree.leaves(got)] == shardings
  # Into a state that has been trained, as an evaluator's may have been.
  trained = runs.state(trainer, seed=5)
  _assert_equal(_restore(trainer, trained), state)


def test_into_shards_and_shapes(saved, released):
  """Into what a pod has: sharded leaves, and none of them a value yet."""
  workdir, state = saved
  trainer = runs.trainer(workdir, released[0])
  sharding = kd.sharding.FSDPSharding(min_size_to_shard_mb=0)
  sharded = kd.sharding.with_sharding_constraint(
      runs.state(trainer, seed=0), sharding
  )
  shapes = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      sharded,
  )
  trainer = runs.trainer(
      workdir,
      released[0],
      sharding=kd.sharding.ShardingStrategy(params=sharding),
  )
  got = _restore(trainer, shapes)
  _assert_equal(got, state)
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(shapes), strict=True):
    assert x.sharding.is_equivalent_to(y.sharding, x.ndim)


@dataclasses.dataclass(frozen=True)
class _Careless(kd.ckpts.InitTransform):
  """Gives the base back on one device, whatever the sharding was."""

  base: Any

  def transform(self, state):
    lora = _trees.split_lora(state.params)[1]
    base = jax.tree.map(jnp.asarray, self.base)
    return state.replace(params=_trees.merge(base, lora))

  def __hash__(self):
    return id(self)


def test_a_transform_may_forget_the_sharding(saved, released):
  workdir, state = saved
  made = runs.trainer(workdir, init_transform=_Careless(released[1]))
  fresh = runs.state(made, seed=0)
  got = _restore(made, fresh)
  _assert_equal(got, state)
  assert all(len(x.sharding.device_set) == 8 for x in jax.tree.leaves(got))


def test_a_base_without_value_is_an_error(saved, released):
  trainer = runs.trainer(saved[0])  # No init_transform.
  shapes = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      runs.state(trainer, seed=0),
  )
  with pytest.raises(ValueError, match=r'has no value .*init_transform='):
    _restore(trainer, shapes)


def test_size_on_disk(tmp_path):
  """1.05 x (LoRA + optimizer) + 1 MB, where 36 layers have 1600 leaves."""
  model = g4.testing.Gemma4_E2B(tokens='batch.input')
  layers = model.config.attention_types * 6
  model = model.clone(
      config=dataclasses.replace(model.config, attention_types=layers)
  )
  made = runs.trainer(tmp_path, base=model, lora={'rank': 8, 'targets': 'text'})
  state = runs.state(made, seed=1)
  made.checkpointer.save(_item(made, state), step=0)
  made.checkpointer.close()
  leaves = runs.saved_leaves(state)
  assert len(leaves) > 1600
  allowed = 1.05 * sum(x.nbytes for x in leaves.values()) + 1e6
  assert _num_bytes(tmp_path / 'checkpoints') <= allowed


@pytest.mark.parametrize(
    ('kwargs', 'match'),
    [
        ({'lora': {'rank': 2}}, 'rank= of .* checkpoint 4, config 2'),
        ({'lora': {'alpha': 1}}, 'alpha= of .* checkpoint 8, config 1'),
        ({'lora': {'targets': 'mlp'}}, 'targets=: only in the checkpoint'),
        ({'base': models.base('Gemma4_E4B')}, 'leaves of the base'),
        (
            {'optimizer': runs.partial(optax.lion(1e-3))},
            r'leaves of the train state are not those of .*ckpt_3(?s:.*)'
            r'nu.*: checkpoint .*config none(?s:.*)kind of optimizer=',
        ),
    ],
)
def test_other_settings_are_refused_before_the_base_is_read(
    kwargs, match, saved
):
  """There is no base to read."""
  trainer = runs.trainer(saved[0], saved[0] / 'nowhere', **kwargs)
  with pytest.raises(ValueError, match=f'LoRACheckpointer(?s:.*){match}'):
    _restore(trainer, runs.state(trainer, seed=0))


def test_another_base_is_refused(saved, released, tmp_path):
  """Also where it differs in one leaf alone; values on disk stay as they are."""
  other = jax.tree.map(np.array, released[1])
  other['layer_1']['mlp']['linear'][3] += 1
  g4.testing.make_checkpoint(models.base(), tmp_path / 'b', params=other)
  trainer = runs.trainer(saved[0], tmp_path / 'b')
  with pytest.raises(
      ValueError, match=r'1 of \d+ leaves, first layer_1.mlp.linear: checkpoint'
  ):
    _restore(trainer, runs.state(trainer, seed=0))


def test_a_changed_rate_dropout_and_length_resume(saved, released):
  workdir, state = saved
  made = runs.trainer(
      workdir,
      released[0],
      lora={'dropout': 0.3},
      learning_rate=1e-4,
      num_train_steps=77,
  )
  _assert_equal(_restore(made, runs.state(made, seed=0)), state)


@pytest.mark.parametrize('optimizer', [optax.adam, optax.sgd])
def test_a_schedule_comes_and_goes(optimizer, released, tmp_path):
  """Where there was none, it goes on from the number of updates."""

  def make(rate):
    return runs.trainer(
        tmp_path / 'run', released[0], optimizer=runs.partial(optimizer(rate))
    )

  schedule = optax.linear_schedule(1e-3, 0.0, 500)
  for step, (before, after) in enumerate([(1e-3, schedule), (schedule, 1e-4)]):
    made = make(before)
    state = runs.state(made, seed=3 + step, params=released[1])
    made.checkpointer.save(state, step=step)
    made.checkpointer.close()
    made = make(after)
    got = _restore(made, runs.state(made, seed=0))
    # Such states have 3 + step wherever they count.
    _assert_equal(got, runs.state(made, seed=3 + step, params=released[1]))


def test_evaluations_read_the_base_once(saved, released, tmp_path):
  """`restore` of the state that it returned, for the next checkpoint."""
  workdir, state = saved
  moved = shutil.copytree(released[0], tmp_path / 'base')
  trainer = runs.trainer(workdir, moved)
  state = trainer.checkpointer.restore(runs.state(trainer, seed=0))
  later = dataclasses.replace(
      state,
      params=_trees.merge(
          state.params,
          jax.tree.map(lambda x: x + 1, _trees.split_lora(state.params)[1]),
      ),
  )
  trainer.checkpointer.save(later, step=4)
  trainer.checkpointer.wait_until_finished()
  want = jax.tree.map(np.asarray, later)
  shutil.rmtree(moved)
  _assert_equal(trainer.checkpointer.restore(state), want)
  # Of other arrays, though equal, nobody knows where they come from.
  copied = jax.tree.map(jnp.asarray, want)
  with pytest.raises(FileNotFoundError, match='no checkpoint at'):
    _restore(trainer, copied)


def test_state_that_is_not_donated_lives(saved, released):
  trainer = runs.trainer(saved[0], released[0])
  state = runs.state(trainer, seed=0)
  want = jax.tree.map(np.asarray, state)
  got = _restore(trainer, state, donate=False)
  _assert_equal(state, want)
  _assert_equal(got, saved[1])


def test_donated_state_is_freed(saved, released):
  trainer = runs.trainer(saved[0], released[0])
  state = runs.state(trainer, seed=0)
  _restore(trainer, state)
  alive = [
      _trees.join(path)
      for path, leaf in _trees.flatten(state).items()
      if not leaf.is_deleted()
  ]
  assert not alive


def test_an_optimizer_of_the_base_is_refused_at_the_start(tmp_path):
  trainer = runs.trainer(tmp_path, optimizer=optax.sgd(1e-2))
  state = _item(trainer, runs.state(trainer, seed=0))
  match = r'changes \d+ leaves of the base .*: embedder.*select\("lora"\)'
  with pytest.raises(ValueError, match=match):
    trainer.checkpointer.restore(state, noop_if_missing=True)
  with pytest.raises(ValueError, match=match):
    trainer.checkpointer.save(state.train_state, step=0)
  assert not list((tmp_path / 'checkpoints').glob('ckpt_*'))


def test_a_loss_of_logits_that_are_not_made_is_refused_at_the_start(tmp_path):
  """By the checkpointer, as Kauldron's train step does not look."""
  trainer = runs.trainer(
      tmp_path,
      lora={'logits_in_training': False},
      trainstep=kd.train.TrainStep(),
  )
  item = _item(trainer, runs.state(trainer, seed=0))
  with pytest.raises(
      ValueError,
      match='LoRACheckpointer: train_losses.xent reads preds.logits.*g4.losses',
  ):
    trainer.checkpointer.restore(item, noop_if_missing=True)


@pytest.mark.parametrize(
    ('file', 'old', 'new'),
    [
        ('ds_iter/process_0-of-1.json', ': 0', ': 8'),
        ('ds_iter/process_0-of-1.json', '{', ''),
        ('timer/metadata', '"batch_size": 8', '"batch_size": 9'),
    ],
)
def test_a_small_item_with_another_digit(file, old, new, saved, released):
  """The run would go on from other data."""
  workdir, state = saved
  path = workdir / 'checkpoints' / 'ckpt_3' / file
  text = path.read_text()
  assert old in text
  path.write_text(text.replace(old, new, 1))
  trainer = runs.trainer(workdir, released[0])
  fresh = runs.state(trainer, seed=0)
  with pytest.raises(ValueError, match=f'{file} is damaged: its digest is'):
    trainer.checkpointer.restore(_item(trainer, fresh))
  _assert_equal(_restore(trainer, fresh), state)  # An evaluator reads none.
  path.write_text(json.dumps(json.loads(text)))  # However it is laid out.
  trainer = runs.trainer(workdir, released[0])
  fresh = runs.state(trainer, seed=0)
  _assert_equal(_restore(trainer, _item(trainer, fresh)).train_state, state)


def test_a_metric_that_is_not_there_is_refused_at_the_start(tmp_path):
  made = runs.trainer(tmp_path, options={'best_metric_path': 'evals.x'})
  item = _item(made, runs.state(made, seed=0))
  with pytest.raises(
      ValueError, match="path='evals.x' is no metric of the run"
  ):
    made.checkpointer.restore(item, noop_if_missing=True)
  with pytest.raises(ValueError, match="'evals.x' is no number of the metrics"):
    made.checkpointer.save(item, step=0, metrics={'evals': {'y': 1}})


def test_what_no_storage_raises_is_not_blamed_on_it(tmp_path):
  made = runs.trainer(tmp_path)
  with pytest.raises(KeyError, match=r"cannot save to \S+\. The last .* 'x'"):
    with made.checkpointer._explained():
      raise KeyError('x')


@pytest.mark.parametrize('is_fresh', [True, False])
def test_a_base_that_changed_is_not_forgotten(
    is_fresh, saved, released, tmp_path
):
  """Since the start of a run, and since it was resumed."""
  workdir = tmp_path / 'new' if is_fresh else saved[0]
  made = runs.trainer(workdir, released[0])
  item = _item(made, runs.state(made, seed=0))
  item = made.checkpointer.restore(item, noop_if_missing=True)
  item.train_state.params['final_norm']['scale'] += 1
  with pytest.raises(
      ValueError, match='1 leaves of the base model changed .* final_norm.scale'
  ):
    made.checkpointer.save(item, step=4)
  made.checkpointer.close()


def test_a_model_without_lora_is_refused(tmp_path):
  made = runs.trainer(tmp_path)
  state = runs.state(made, seed=0)
  base = _trees.split_lora(state.params)[0]
  state = dataclasses.replace(state, params=base)
  with pytest.raises(ValueError, match='no LoRA leaf: nothing would be saved'):
    made.checkpointer.save(state, step=0)


def test_only_states_are_saved(tmp_path):
  made = runs.trainer(tmp_path)
  with pytest.raises(ValueError, match='takes the state of a trainer, got Sta'):
    made.checkpointer.save(kd.ckpts.items.StandardCheckpointItem(), step=0)


def test_a_part_of_a_copy_is_said_to_be_one(tmp_path):
  made = runs.trainer(tmp_path)
  (tmp_path / 'checkpoints' / 'ckpt_7' / 'default').mkdir(parents=True)
  match = r"ckpt_7 is a part of .*only \['default'\]. Copy it again"
  with pytest.raises(ValueError, match=match):
    made.checkpointer._saved(7)


def test_what_a_copy_left_out_is_named(saved, released):
  """Whatever it is, and before the base is read."""
  workdir, state = saved
  step = workdir / 'checkpoints' / 'ckpt_3'
  trainer = runs.trainer(workdir, released[0].with_name('none'))
  for name, match in (
      (
          'default',
          'ckpt_3 is a part of a checkpoint: it lacks default',
      ),
      (
          'fingerprint',
          'ckpt_3 is a part of .*fingerprint/metadata is not there',
      ),
      ('timer', 'ckpt_3 is a part of a checkpoint: it lacks timer'),
      ('timer/metadata', 'ckpt_3 is a part of .*timer/metadata is not there'),
      ('default/manifest.ocdbt', 'default is half-written: it has no manifest'),
      ('default/d', 'the index .* is damaged .*ckpt_3/default. Copy'),
  ):
    (step / name).rename(workdir / 'away')
    with pytest.raises(ValueError, match=match):
      _restore(trainer, _item(trainer, state))
    if name == 'fingerprint':  # Not: there is no LoRA.
      with pytest.raises(ValueError, match=match):
        _lora_item.read_lora(workdir, who='WHO')
    (workdir / 'away').rename(step / name)


def test_a_pipe_in_a_step_is_not_waited_for(saved):
  step = saved[0] / 'checkpoints' / 'ckpt_3'
  (step / '_CHECKPOINT_METADATA').unlink()
  os.mkfifo(step / '_CHECKPOINT_METADATA')
  with pytest.raises(ValueError, match='ckpt_3/_CHECKPOINT_METADATA is a pipe'):
    assert runs.trainer(saved[0]).checkpointer.latest_step


def test_a_run_of_kauldrons_checkpointer_is_refused(plain):
  made = runs.trainer(plain[0])
  with pytest.raises(ValueError, match='no fingerprint: another checkpointer'):
    _restore(made, runs.state(made, seed=0))


def test_missing_checkpoints(saved, released, tmp_path):
  made = runs.trainer(tmp_path / 'new', released[0])
  state = runs.state(made, seed=0)
  with pytest.raises(FileNotFoundError, match='no checkpoint in .*noop_if'):
    made.checkpointer.restore(state)
  assert made.checkpointer.restore(state, noop_if_missing=True) is state
  made = runs.trainer(saved[0], released[0])
  with pytest.raises(FileNotFoundError, match=r'step=9 .* steps: \[3\]'):
    made.checkpointer.restore(state, step=9)


def test_without_a_trainer_it_says_so(tmp_path, saved):
  lonely = g4.ckpts.LoRACheckpointer(save_interval_steps=1, workdir=tmp_path)
  with pytest.raises(ValueError, match='base_cfg is an unresolved'):
    lonely.restore(saved[1])


@pytest.mark.parametrize(
    'transform',
    [
        lambda path: g4.ckpts.PartialLoad(path=path),
        lambda path: g4.ckpts.SkipLoRA4(
            wrapped=kd.ckpts.PartialKauldronLoader(workdir=path)
        ),
    ],
)
def test_is_no_base_for_a_transform(transform, saved):
  made = runs.trainer(saved[0])
  with pytest.raises(
      ValueError, match=r'LoRA leaves and no base model.*LoadLoRA\(path='
  ):
    transform(saved[0]).transform(runs.state(made, seed=0))


@pytest.mark.parametrize('whose', ['saved', 'plain'])
def test_reads_lora_of_a_run(whose, request):
  workdir, state = request.getfixturevalue(whose)
  params, fingerprint = _lora_item.read_lora(workdir, step=3, who='WHO')
  _assert_equal(params, _trees.split_lora(state.params)[1])
  assert (fingerprint is not None) == (whose == 'saved')


def test_damage_of_a_step_is_found(saved, released):
  """What was trained, moments and the file that describes them."""
  workdir, state = saved
  step = workdir / 'checkpoints' / 'ckpt_3'
  file = step / 'fingerprint' / 'metadata'
  text = file.read_text()
  said = json.loads(text)
  for name in said['digests']:  # As if the array had another bit.
    del said['seal']
    digests = said['digests'] | {name: '0' * 16}
    file.write_text(json.dumps(_intact.sealed({**said, 'digests': digests})))
    match = f'ckpt_3 is damaged: {name} is not what was saved'
    if name.startswith('params'):
      with pytest.raises(ValueError, match=match):
        _lora_item.read_lora(workdir, step=3, who='WHO')
    said = json.loads(text)
  assert {x.split('_')[0] for x in digests} >= {'params', 'opt'}
  trainer = runs.trainer(workdir, released[0])
  fresh = runs.state(trainer, seed=4)
  with pytest.raises(ValueError, match=match):  # Of the last one, a moment.
    _restore(trainer, _item(trainer, fresh))
  file.write_text(text.replace('"rank": 4', '"rank": 5', 1))
  assert file.read_text() != text
  with pytest.raises(ValueError, match='metadata is damaged: it is not as it'):
    _lora_item.read_lora(workdir, step=3, who='WHO')
  # Bits of the data itself: an error, or one that no array has.
  file.write_text(text)
  _, lora = _trees.split_lora(state.params)
  data = max(step.rglob('d/*'), key=lambda x: x.stat().st_size)
  was = data.read_bytes()
  refused = 0
  for i in range(100, len(was), len(was) // 25):
    bad = bytearray(was)
    bad[i] ^= 1 << i % 8
    data.write_bytes(bad)
    try:
      params, _ = _lora_item.read_lora(workdir, step=3, who='WHO')
      _assert_equal(params, lora)
    except ValueError as e:
      assert os.fspath(step) in str(e)
      refused += 1
  assert refused


def test_reads_lora_where_there_is_none(released):
  with pytest.raises(ValueError, match='WHO: no LoRA leaf in'):
    _lora_item.read_lora(released[0], who='WHO')


def test_on_disk_is_an_orbax_checkpoint(saved):
  """Any version of Orbax opens it; no base leaf is in it."""
  workdir, state = saved
  tree = ocp.PyTreeCheckpointer().restore(
      workdir / 'checkpoints' / 'ckpt_3' / 'default'
  )
  num_values = sum(np.size(x) for x in jax.tree.leaves(tree))
  assert num_values == sum(x.size for x in runs.saved_leaves(state).values())
  reader = kd.ckpts.Checkpointer(workdir=workdir, save_interval_steps=1)
  assert reader.all_steps == [3]


def test_options_are_kauldrons(released, tmp_path):
  """The best two are kept; what goes leaves nothing behind."""
  made = runs.trainer(
      tmp_path,
      released[0],
      options={
          'max_to_keep': 2,
          'best_metric_path': 'eval.loss',
          'best_mode': 'min',
          'save_interval_steps': 2,
      },
  )
  state = runs.state(made, seed=0, params=released[1])
  ckpt = made.checkpointer
  for step, loss in enumerate([5.0, 0.0, 3.0, 0.0, 4.0]):
    if ckpt.should_save(step):
      ckpt.save(state, step=step, metrics={'eval': {'loss': loss}})
  ckpt.close()
  assert ckpt.all_steps == [2, 4]
  names = {path.name for path in (tmp_path / 'checkpoints').iterdir()}
  assert names == {'ckpt_2', 'ckpt_4'}


def test_what_goes_is_renamed_before_it_is_deleted(tmp_path):
  """Killed in between, half of it would be there under its name."""
  made = runs.trainer(tmp_path, options={'max_to_keep': 1})
  for step in (0, 1):
    made.checkpointer.save(runs.state(made, seed=0), step=step)
  # Kauldron's own, which does not clean up.
  kd.ckpts.Checkpointer.wait_until_finished(made.checkpointer)
  assert (tmp_path / 'checkpoints' / 'deleted' / 'ckpt_0').is_dir()
  made.checkpointer.wait_until_finished()
  names = {path.name for path in (tmp_path / 'checkpoints').iterdir()}
  assert names == {'ckpt_1'}


def test_what_a_killed_run_left_is_passed_over_and_removed(saved, released):
  """A save and a deletion, each cut off in the middle."""
  workdir, state = saved
  folder = workdir / 'checkpoints'
  half = shutil.copytree(
      folder / 'ckpt_3', folder / 'ckpt_4.orbax-checkpoint-tmp'
  )
  (half / 'default' / '_METADATA').unlink()
  shutil.copytree(half, folder / 'deleted' / 'ckpt_1')
  made = runs.trainer(workdir, released[0])
  assert made.checkpointer.latest_step == 3
  item = _item(made, runs.state(made, seed=0))
  got = made.checkpointer.restore(item, noop_if_missing=True)
  _assert_equal(got.train_state, state)
  assert [path.name for path in folder.iterdir()] == ['ckpt_3']
  # And the step that was cut off is saved now.
  made.checkpointer.save(got, step=4)
  made.checkpointer.close()
  assert made.checkpointer.all_steps == [3, 4]


def test_an_evaluation_leaves_a_save_in_progress_alone(saved, released):
  half = saved[0] / 'checkpoints' / 'ckpt_4.orbax-checkpoint-tmp'
  half.mkdir()
  made = runs.trainer(saved[0], released[0])
  _restore(made, runs.state(made, seed=0))
  assert half.exists()


def test_disk_full(saved, released):
  """The error comes, at the latest, before the next save; 3 is still the last."""
  workdir, state = saved
  made = runs.trainer(workdir, released[0])
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, hard))
  try:
    with pytest.raises(
        Exception,
        match=r'(?s)LoRACheckpointer: cannot save to .*disk full.*: step 3\.',
    ):
      made.checkpointer.save(state, step=4)
      made.checkpointer.wait_until_finished()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert not (workdir / 'checkpoints' / 'ckpt_4').exists()
  made = runs.trainer(workdir, released[0])
  item = _item(made, runs.state(made, seed=0))
  got = made.checkpointer.restore(item, noop_if_missing=True)
  _assert_equal(got.train_state, state)
  made.checkpointer.save(got, step=4)
  made.checkpointer.close()
  assert made.checkpointer.all_steps == [3, 4]


def test_read_only_workdir(tmp_path):
  """In `/proc`, where not even root makes a file."""
  proc = pathlib.Path('/proc/self')
  with pytest.raises(OSError, match='cannot save to .*workdir read-only.*none'):
    _ = runs.trainer(proc / 'run').checkpointer.latest_step
  (tmp_path / 'checkpoints').symlink_to(proc)
  made = runs.trainer(tmp_path)
  item = _item(made, runs.state(made, seed=0))
  with pytest.raises(OSError, match='cannot save to .*workdir read-only'):
    made.checkpointer.restore(item, noop_if_missing=True)


@pytest.mark.parametrize(
    'run',
    [
        # Their default executor is not on PyPI.
        kd.evals.StandaloneEveryCheckpoint(executor=None),
        kd.evals.StandaloneLastCheckpoint(executor=None),
        kd.evals.EveryNSteps(5),
    ],
)
def test_evaluators_that_read_past_it_are_refused(run, tmp_path):
  """With discard_opt=True, Kauldron reads the checkpoint by itself."""
  made = runs.trainer(tmp_path)
  evaluator = kd.evals.Evaluator(run=run, ds=made.train_ds, discard_opt=True)
  if isinstance(run, kd.evals.EveryNSteps):
    made.replace(evals={'eval': evaluator})
    return
  with pytest.raises(ValueError, match=r'evals.eval.discard_opt=True: with it'):
    made.replace(evals={'eval': evaluator})


def _item(trainer, state):
  """What the train loop saves: the state, timings, the place in the data."""
  chrono = trainer._chrono  # pylint: disable=protected-access
  return checkpoint_state.CheckpointState(state, chrono, iter(trainer.train_ds))
