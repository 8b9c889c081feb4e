"""`python -m gemma4_lora train`, on two hosts that are killed."""

import os
import pathlib
import re
import socket
import subprocess
import sys
import time

import jax
import numpy as np

from gemma4_lora import g4
from tests import training
from tests.ckpts import runs
from tests.jobs import two_hosts

_ROOT = pathlib.Path(__file__).parent.parent.parent
_NUM_STEPS = 8


def _start(folder, launch):
  """Starts both hosts, of four devices each."""
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    port = s.getsockname()[1]
  environment = os.environ | {
      'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}',
      'JAX_NUM_PROCESSES': '2',
      'JAX_NUM_CPU_DEVICES': '4',
      'JAX_PLATFORMS': 'cpu',
      'JAX_COMPILATION_CACHE_DIR': os.environ['GEMMA4_LORA_TEST_CACHE'],
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.5',
  }
  hosts = []
  for index in range(2):
    with (folder / f'log_{launch}_{index}').open('w') as log:
      hosts.append(
          subprocess.Popen(
              [
                  *(sys.executable, '-m', 'gemma4_lora', 'train'),
                  '--cfg=tests/jobs/two_hosts_config.py',
                  f'--cfg.workdir={folder / "run"}',
                  f'--cfg.released={folder / "released"}',
                  f'--cfg.num_train_steps={_NUM_STEPS}',
              ],
              cwd=_ROOT,
              env=environment | {'JAX_PROCESS_ID': str(index)},
              stdout=log,
              stderr=subprocess.STDOUT,
          )
      )
  return hosts


def _logs(folder, index):
  logs = sorted(folder.glob(f'log_*_{index}'))
  return '\n'.join(log.read_text() for log in logs)


def _wait_for_step(folder, step, hosts):
  saved = folder / 'run' / 'checkpoints' / f'ckpt_{step}'
  deadline = time.monotonic() + 300
  while not saved.exists():
    logs = _logs(folder, 0) + _logs(folder, 1)
    assert all(host.poll() is None for host in hosts), logs
    assert time.monotonic() < deadline, logs
    time.sleep(0.02)


def test_two_hosts_killed_one_by_one_are_the_uninterrupted_run(tmp_path):
  """In one process: other hosts, other order of examples, the same numbers."""
  base = training.random_params(runs.base_model())
  released = tmp_path / 'released'
  g4.testing.make_checkpoint(runs.base_model(), released, params=base)
  for launch, (step, order) in enumerate([(2, (1, 0)), (5, (0, 1))]):
    hosts = _start(tmp_path, launch)
    _wait_for_step(tmp_path, step, hosts)
    for index in order:
      hosts[index].kill()
      assert hosts[index].wait() == -9
  for host in (hosts := _start(tmp_path, 2)):
    assert host.wait(timeout=300) == 0, _logs(tmp_path, hosts.index(host))

  def trainer(workdir):
    return two_hosts.trainer(
        workdir=workdir, released=released, num_train_steps=_NUM_STEPS
    )

  want = trainer(tmp_path / 'whole').train()[0]
  # One process reads what two wrote.
  made = trainer(tmp_path / 'run')
  got = made.checkpointer.restore(made.init_state())
  assert int(got.step) == _NUM_STEPS
  for path, leaf in runs.saved_leaves(want).items():
    np.testing.assert_allclose(
        runs.saved_leaves(got)[path], leaf, rtol=1e-4, atol=1e-6, err_msg=path
    )
  assert any(
      np.any(x) for x in jax.tree.leaves(runs.saved_leaves(got)) if x.ndim
  )

  # What there is one of, there is one of: not one of each host.
  run = tmp_path / 'run'
  names = {path.name for path in (run / 'checkpoints').iterdir()}
  assert names == {f'ckpt_{_NUM_STEPS - 1}', f'ckpt_{_NUM_STEPS}'}
  assert len(list(run.glob('train/events*'))) == 3  # One of each launch.
  printed = [re.findall(r'step +(\d+)  train', _logs(tmp_path, i)) for i in (0, 1)]
  assert printed[1] == []
  # Each step, and from where each launch went on: the last that was saved.
  assert sorted(set(map(int, printed[0]))) == list(range(_NUM_STEPS + 1))
  assert printed[0].count('0') == 1
