"""One live run in a workdir; what it says; how it is stopped."""

import dataclasses
import pathlib
import signal
import subprocess
import sys

import jax
from kauldron import kd
from kauldron.train import checkpoint_state
import numpy as np
import pytest

from gemma4_lora import g4
from gemma4_lora.ckpts import _live_run
from gemma4_lora.data import _ended
from gemma4_lora.host import _live_owner
from gemma4_lora.host import _processes
from gemma4_lora.host import _stop_signals
from tests.lib import models
from tests.lib import runs


@pytest.fixture(name='make')
def _make(tmp_path):
  """Returns what starts a run: its checkpointer, and what it was given."""
  started = []

  def make(*, seed=0, **options):
    made = runs.trainer(tmp_path, base=models.base(cut=models.one_layer))
    evaluator = kd.evals.Evaluator(
        run=kd.evals.EveryNSteps(1),
        ds=made.train_ds,
        num_batches=1,
        metrics={'loss': kd.metrics.Accuracy(logits='preds.logits')},
    )
    made = made.replace(
        checkpointer=g4.ckpts.Checkpointer(save_interval_steps=100, **options),
        evals={'eval': evaluator},
    )
    ckpt = made.checkpointer
    started.append(ckpt)
    assert ckpt.latest_step is None or seed == 0
    item = checkpoint_state.CheckpointState(
        runs.state(made, seed=seed),
        made._chrono,  # pylint: disable=protected-access
        iter(made.train_ds),
    )
    return ckpt, ckpt.restore(item, noop_if_missing=True)

  yield make
  for ckpt in started:
    ckpt._run.end()  # pylint: disable=protected-access


@pytest.fixture(name='other')
def _other(tmp_path):
  """A live process that has the workdir."""
  process = subprocess.Popen(['sleep', '100'])
  owner = dataclasses.replace(
      _live_owner._this_process(),
      pid=process.pid,
      born=_processes.started(process.pid),
      key='other',
  )
  _live_owner._write(tmp_path / 'train_owner.json', owner)
  yield process
  process.kill()
  process.wait()


def test_a_workdir_that_orbax_takes_for_a_pattern_is_refused(tmp_path):
  """What it saves in `run[1]` cannot be restored."""
  made = runs.trainer(
      tmp_path / 'run[1]', base=models.base(cut=models.one_layer)
  )
  made = made.replace(checkpointer=g4.ckpts.Checkpointer(save_interval_steps=1))
  item = checkpoint_state.CheckpointState(
      runs.state(made, seed=0),
      made._chrono,  # pylint: disable=protected-access
      iter(made.train_ds),
  )
  with pytest.raises(ValueError, match=r"run\[1\] has a '\['.*cannot be rest"):
    made.checkpointer.restore(item, noop_if_missing=True)
  assert not (tmp_path / 'run[1]' / 'checkpoints').exists()


def test_batches_of_a_run_end_in_words(make):
  _, item = make()
  assert isinstance(item.ds_iter, _ended.Batches)


def _names(folder):
  return {path.name for path in folder.iterdir()}


def test_a_second_live_run_is_an_error_and_harms_nothing(make, other, tmp_path):
  half = tmp_path / 'checkpoints' / 'ckpt_4.orbax-checkpoint-tmp'
  half.mkdir(parents=True)
  with pytest.raises(
      _live_owner.OwnedError,
      match=rf'another run trains in {tmp_path}: process {other.pid} on .*'
      r'--cfg\.workdir=',
  ):
    make()
  assert half.exists()
  other.kill()
  other.wait()
  make()
  assert not half.exists()


def test_a_run_whose_workdir_was_taken_saves_no_more(make, tmp_path):
  ckpt, item = make()
  ckpt.save(item, step=0)
  theirs = dataclasses.replace(_live_owner._this_process(), key='other', pid=1)
  _live_owner._write(tmp_path / 'train_owner.json', theirs)
  with pytest.raises(_live_owner.OwnedError, match='another run trains in'):
    ckpt.save(item, step=100)
  ckpt.wait_until_finished()
  assert _names(tmp_path / 'checkpoints') == {'ckpt_0'}
  assert (tmp_path / 'train_owner.json').exists()  # Theirs.


@pytest.mark.parametrize('is_same_trainer', [True, False])
def test_an_interrupted_run_starts_again_at_once(
    make, tmp_path, is_same_trainer
):
  """As a cell that is run again while its last save is still being written."""
  ckpt, item = make(seed=3)
  ckpt.save(item, step=0)
  ckpt.save(item, step=3, force=True)
  if is_same_trainer:
    assert ckpt.latest_step == 3
    again = ckpt.restore(item, noop_if_missing=True)
  else:
    _, again = make()
  assert ckpt._run.is_training == is_same_trainer
  assert int(again.train_state.step) == 3
  assert _names(tmp_path / 'checkpoints') == {'ckpt_0', 'ckpt_3'}


def test_what_another_trainer_saved_meanwhile_is_gone_on_from(make):
  ckpt, item = make(seed=3)
  ckpt.save(item, step=3, force=True)
  ckpt.wait_until_finished()

  def save(step):
    other, item = make()
    other.save(item, step=step, force=True)
    other.wait_until_finished()
    return item

  item = save(4)
  # The trainer may have made its state for what there was before.
  with pytest.raises(_live_owner.OwnedError, match='while this one started'):
    ckpt.restore(item, noop_if_missing=True)
  item = save(5)
  assert ckpt.latest_step == 5
  ckpt.restore(item, noop_if_missing=True)


def test_a_run_in_another_thread_is_live(make, tmp_path, monkeypatch):
  make()
  run = _live_run._RUNS[str(tmp_path)]

  class Thread:
    name = 'worker'

    def is_alive(self):
      return True

  monkeypatch.setattr(run, '_thread', Thread())
  with pytest.raises(
      _live_owner.OwnedError, match='thread worker of this process'
  ):
    make()


def test_a_run_that_ends_gives_all_back(make, tmp_path):
  before = signal.getsignal(signal.SIGTERM)
  ckpt, item = make()
  assert signal.getsignal(signal.SIGTERM) is not before
  assert (tmp_path / 'train_owner.json').exists()
  assert _stop_signals.of_process().is_training
  ckpt.save(item, step=0)
  ckpt.wait_until_finished()
  assert _names(tmp_path) == {'checkpoints'}
  assert not _stop_signals.of_process().is_training
  assert signal.getsignal(signal.SIGTERM) is before
  assert not _live_run._RUNS
  assert not ckpt.should_save(1)


def test_a_start_that_fails_gives_all_back(make, tmp_path):
  ckpt, item = make()
  ckpt.save(item, step=0)
  ckpt.wait_until_finished()
  for path in (tmp_path / 'checkpoints' / 'ckpt_0' / 'default').iterdir():
    path.rename(path.with_name(f'{path.name}_moved'))
  with pytest.raises(Exception, match='structure error'):
    make()
  assert not (tmp_path / 'train_owner.json').exists()


@pytest.mark.parametrize('options', [{}, {'best_metric_path': 'eval.loss'}])
def test_asked_to_stop_it_saves_what_is_new_and_ends(
    make, tmp_path, capsys, options
):
  ckpt, item = make(**options)
  ckpt.save(item, step=0, metrics={'eval': {'loss': 1.0}})
  assert not ckpt.should_save(7)
  _stop_signals.of_process().received = 'SIGTERM'
  assert ckpt.should_save(7)
  with pytest.raises(_stop_signals.Stopped) as stopped:
    ckpt.save(item, step=7, metrics={'train': {}})
  assert stopped.value.code == 75
  assert capsys.readouterr().err == (
      f'gemma4_lora: SIGTERM: saved step 7 in {tmp_path}. The same command goes'
      ' on from it.\n'
  )
  assert _names(tmp_path) == {'checkpoints'}
  ckpt, _ = make(**options)
  assert ckpt.all_steps == [0, 7]


def test_what_a_run_has_saved_is_known_to_errors(make, tmp_path):
  assert _live_run.saved() is None
  ckpt, item = make()
  assert 'as far as this run knows: none.' in _live_run.saved()
  ckpt.save(item, step=3)
  ckpt._wait()  # pylint: disable=protected-access
  assert (
      f'in {tmp_path}, as far as this run knows: step 3.' in _live_run.saved()
  )
  ckpt.close()
  make()
  assert 'step 3.' in _live_run.saved()


def test_asked_to_stop_before_a_step_it_saves_nothing(make, tmp_path, capsys):
  ckpt, item = make()
  ckpt.save(item, step=0)
  _stop_signals.of_process().received = 'SIGINT'
  with pytest.raises(_stop_signals.Stopped):
    ckpt.should_save(0)
  assert 'SIGINT: no step was done since step 0 in' in capsys.readouterr().err
  assert _names(tmp_path / 'checkpoints') == {'ckpt_0'}


def test_asked_to_stop_before_it_trains_it_gives_all_back(make, tmp_path):
  signals = _stop_signals.of_process()
  signals.received = 'SIGTERM'
  try:
    with pytest.raises(_stop_signals.Stopped):
      make()
  finally:
    signals.received = None
  assert _names(tmp_path) == {'checkpoints'}


def test_asked_to_stop_it_ends_an_evaluation(make):
  ckpt, item = make()
  (evaluator,) = ckpt.base_cfg.evals.values()
  _stop_signals.of_process().received = 'SIGTERM'
  assert evaluator.maybe_eval(step=0, state=item.train_state) is None


def test_a_notebook_gets_control_back(make, monkeypatch):
  monkeypatch.setattr(sys, 'ps1', '>>> ', raising=False)
  ckpt, item = make()
  _stop_signals.of_process().received = 'SIGINT'
  with pytest.raises(KeyboardInterrupt, match='SIGINT: saved step 1 in'):
    ckpt.save(item, step=1)
  _, again = make()
  assert ckpt.all_steps == [1]
  jax.tree.map(
      np.testing.assert_array_equal, again.train_state, item.train_state
  )


def test_a_bucket_gets_no_modes(tmp_path):
  """A trainer with Kauldron's own checkpointer is refused as it is made."""

  def options(workdir):
    ckpt = g4.ckpts.Checkpointer(workdir=workdir, save_interval_steps=1)
    return ckpt._ckpt_mgr.options  # pylint: disable=protected-access

  assert options('gs://b/run').file_options.path_permission_mode is None
  assert options(tmp_path).file_options.path_permission_mode == 0o770
  made = runs.trainer(tmp_path, base=models.base(cut=models.one_layer))
  # Kauldron would make a folder called `gs:` before it asks for a checkpoint.
  with pytest.raises(
      ValueError, match=r"LoRACheckpointer: workdir: 'gs:/b/run' .*'gs://b/run'"
  ):
    made.replace(workdir=pathlib.Path('gs://b/run'))
  plain = kd.ckpts.Checkpointer(save_interval_steps=1)
  made.replace(checkpointer=plain)
  with pytest.raises(
      ValueError,
      match=r'TrainStep: Checkpointer of Kauldron cannot save to the bucket'
      r' gs://b/run: .* checkpointer=g4\.ckpts\.Checkpointer',
  ):
    made.replace(
        workdir='gs://b/run',
        checkpointer=plain,
        trainstep=g4.train.TrainStep(),
    )
