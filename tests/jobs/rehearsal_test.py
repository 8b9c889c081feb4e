"""A job on Vertex AI from its container's command line to what it is served from.

All but the machine: the config that the README submits, on a tiny model, reads its
base from one bucket, saves to another, and is preempted twice.
"""

import os
import re
import signal
import time

from kauldron import konfig
import pytest

from gemma4_lora import g4
from tests.lib import events
from tests.lib import jobs
from tests.lib import shipped
from tests.lib import two_hosts

_CONFIG = shipped.ROOT / 'tests' / 'lib' / 'rehearsed_config.py'
_BASE = 'gs://base-models/tiny'
_WORKDIR = 'gs://trained-models/mtnt'
_STEPS = 10
_OVERRIDES = (
    f'--cfg.num_train_steps={_STEPS}',
    # So few steps must change the model more than rounding does: `check` says.
    '--cfg.model.alpha=512',
    # Preempted where it pleases, a run still has a step to go.
    '--cfg.checkpointer.save_interval_steps=1',
)
_STOPPED = 75  # See `gemma4_lora.jobs._train`.
_WAIT_S = 900


class _Rehearsal:
  """Commands in the emulator, each in a process of its own."""

  def __init__(self, buckets, folder):
    self._buckets, self._folder = buckets, folder
    self._started = []

  def start(self, *argv):
    """Starts `python -m gemma4_lora` with these arguments."""
    log = self._folder / f'log_{len(self._started)}'
    process = self._buckets.fork(_run_at_root, list(argv), {}, str(log))
    self._started.append((process, log))
    return process

  def run(self, *argv):
    """Runs it to its end; returns what it printed."""
    return self.wait(self.start(*argv), status=0)

  def wait(self, process, *, status):
    process.join(_WAIT_S)
    log = next(log for p, log in self._started if p is process).read_text()
    assert process.exitcode == status, log
    return log

  def preempt(self, process, *, step):
    """Sends what Google sends, once a step is saved; returns the log."""
    checkpoints = self._buckets.folder('trained-models') / 'mtnt/checkpoints'
    deadline = time.monotonic() + _WAIT_S
    # Written last.
    while not (checkpoints / f'ckpt_{step}' / 'commit_success.txt').exists():
      assert process.is_alive(), self.wait(process, status=None)
      assert time.monotonic() < deadline
      time.sleep(0.02)
    os.kill(process.pid, signal.SIGTERM)
    return self.wait(process, status=_STOPPED)

  def end(self):
    for process, _ in self._started:
      process.kill()


def _run_at_root(*args):
  os.chdir(shipped.ROOT)  # As the container's WORKDIR: the config's path.
  two_hosts.run_command(*args)


@pytest.fixture(name='rehearsal')
def _rehearsal(buckets, tmp_path):
  made = _Rehearsal(buckets, tmp_path)
  yield made
  made.end()


def _container_command(*overrides):
  """Returns what the container of a job runs, after `python -m gemma4_lora`."""
  request = jobs.request_of(
      config=jobs.config(
          str(_CONFIG.relative_to(shipped.ROOT)), *_OVERRIDES, *overrides
      ),
      workdir=_WORKDIR,
  )
  (pool,) = request.job().job_spec.worker_pool_specs
  container = pool.container_spec
  python, module, package, *command = container.command
  assert (python, module, package) == ('python', '-m', 'gemma4_lora')
  return [*command, *container.args]


@pytest.mark.slow
def test_a_job_is_preempted_twice_and_its_lora_is_served(
    rehearsal, buckets, tmp_path, monkeypatch
):
  """Losses are bitwise those of a run on a disk that nobody stops."""
  monkeypatch.chdir(shipped.ROOT)
  local, base = tmp_path / 'local', tmp_path / 'base'
  cfg = shipped.config(_CONFIG)
  g4.testing.make_checkpoint(konfig.resolve(cfg.model.model), base)
  path = '--cfg.init_transform.wrapped.path'
  rehearsal.run(
      'train',
      f'--cfg={_CONFIG}',
      f'--cfg.workdir={local}',
      f'{path}={base}',
      *_OVERRIDES,
  )

  for bucket in ('base-models', 'trained-models', 'served'):
    buckets.make(bucket)
  buckets.upload(base, _BASE)
  command = _container_command(f'{path}={_BASE}')
  assert f'--cfg.workdir={_WORKDIR}' in command
  for step in (1, 4):
    log = rehearsal.preempt(rehearsal.start(*command), step=step)
    assert re.search(r'SIGTERM.*step \d+', log), log
  log = rehearsal.run(*command)
  assert 'goes on from step' in log

  trained = buckets.folder('trained-models') / 'mtnt'
  # Evaluations that a signal ended are done again.
  for name, steps in (
      ('train', range(_STEPS)),
      ('eval', (0, 4, 8)),
      ('eval_base', (0, 4, 8)),
  ):
    want = events.scalars(local / name)['losses/xentropy']
    assert set(want) >= set(steps)
    assert events.scalars(trained / name)['losses/xentropy'] == want

  flags = [x for x in command if x.startswith('--cfg')]
  rehearsal.run('fuse', *flags, '--out=gs://served/fused')
  rehearsal.run('export', *flags, '--out=gs://served/lora')
  rehearsal.run('check', *flags, '--peft=gs://served/lora')
  served = buckets.folder('served')
  assert (served / 'lora' / 'adapter_config.json').exists()
  assert (served / 'fused' / '_METADATA').exists()
