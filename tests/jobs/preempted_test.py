"""A run that is told to stop, by either command and either signal."""

import os
import pathlib
import re
import signal
import time

import numpy as np
import pytest

from gemma4_lora import g4
from tests.lib import forked
from tests.lib import random_params
from tests.lib import runs
from tests.lib import two_hosts

_ROOT = pathlib.Path(__file__).parent.parent.parent
_RARELY = 1_000_000


@pytest.fixture(name='start')
def _start(tmp_path):
  """Starts a run, forked from a process that has imported all that it needs."""
  environment = {'JAX_NUM_CPU_DEVICES': '8'}  # As in this process.
  context = forked.server()
  started = []

  def start(module, **values):
    values = {
        'workdir': tmp_path / 'run',
        'released': tmp_path / 'released',
        'num_train_steps': _RARELY,
        'save_interval_steps': _RARELY,
    } | values
    argv = [f'--cfg={_ROOT}/tests/lib/two_hosts_config.py']
    argv += [f'--cfg.{name}={value}' for name, value in values.items()]
    if module == 'gemma4_lora':
      argv = ['train', *argv]
    log = tmp_path / f'log_{len(started)}'
    process = context.Process(
        target=two_hosts.run_command, args=(argv, environment, str(log), module)
    )
    process.start()
    started.append(process)
    return process, log

  yield start
  for process in started:
    process.kill()


def _stop(process, log, number):
  """Sends a signal to a run that trains; returns what it printed."""
  deadline = time.monotonic() + 300
  while len(re.findall(r'step +\d+  train', _read(log))) < 2:
    assert process.is_alive(), _read(log)
    assert time.monotonic() < deadline, _read(log)
    time.sleep(0.02)
  start = time.monotonic()
  os.kill(process.pid, number)
  process.join(timeout=100)
  assert time.monotonic() - start < 25
  assert process.exitcode == 75, _read(log)
  assert 'Traceback' not in _read(log)
  return _read(log)


def test_stopped_twice_and_resumed_is_the_whole_run(start, tmp_path):
  """Bit for bit, with both signals and both commands."""
  base = random_params.make(two_hosts.base_model())
  released = tmp_path / 'released'
  g4.testing.make_checkpoint(two_hosts.base_model(), released, params=base)
  step = 0
  for module, number in (
      ('gemma4_lora', signal.SIGTERM),
      ('kauldron.main', signal.SIGINT),
  ):
    text = _stop(*start(module), number)
    if step:
      assert f'goes on from step {step} of {tmp_path}/run (saved 2' in text
      assert f'base: {released}' in text
    (saved,) = re.findall(
        rf'{number.name}: saved step (\d+) in {tmp_path}/run. The same command',
        text,
    )
    assert int(saved) > step
    step = int(saved)
    names = {x.name for x in (tmp_path / 'run' / 'checkpoints').iterdir()}
    assert len(names) == 2 and f'ckpt_{step}' in names
    assert not (tmp_path / 'run' / 'train_complete.txt').exists()
    assert not (tmp_path / 'run' / 'train_owner.json').exists()
  last = step + 2
  process, log = start(
      'gemma4_lora', num_train_steps=last, save_interval_steps=last
  )
  process.join(timeout=300)
  assert process.exitcode == 0, _read(log)
  assert re.search(
      rf'the start:\n(.*\n)*  num_train_steps: {_RARELY} → {last}', _read(log)
  )

  def trainer(workdir):
    return two_hosts.trainer(
        workdir=tmp_path / workdir,
        released=released,
        num_train_steps=last,
        save_interval_steps=last,
    )

  def saved_leaves(workdir):
    checkpointer = trainer(workdir).checkpointer
    state = checkpointer.restore(runs.state(trainer(workdir), seed=0))
    return runs.saved_leaves(state)

  trainer('whole').train()
  got, want = saved_leaves('run'), saved_leaves('whole')
  assert got['step'] == last
  assert got.keys() == want.keys()
  for path, leaf in want.items():
    np.testing.assert_array_equal(got[path], leaf, err_msg=path)


def _read(log):
  return log.read_text() if log.exists() else ''
