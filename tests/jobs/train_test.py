"""`python -m gemma4_lora train`, on two hosts that are killed."""

import os
import pathlib
import re
import socket
import subprocess
import sys
import time

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


def _wait_for_step(folder, step, hosts):
  saved = folder / 'run' / 'checkpoints' / f'ckpt_{step}'
  deadline = time.monotonic() + 300
  while not saved.exists():
    assert all(host.poll() is None for host in hosts), _log(folder, 0, 0)
    assert time.monotonic() < deadline, _log(folder, 0, 0)
    time.sleep(0.02)


def test_two_hosts_killed_one_by_one_and_resumed_are_the_whole_run(tmp_path):
  """In one process: other hosts, other order of examples, the same numbers."""
  base = training.random_params(runs.base_model())
  released = tmp_path / 'released'
  g4.testing.make_checkpoint(runs.base_model(), released, params=base)
  hosts = _start(tmp_path, launch=0)
  _wait_for_step(tmp_path, 2, hosts)
  for host in reversed(hosts):
    host.kill()
    assert host.wait() == -9
  for host in _start(tmp_path, launch=1):
    assert host.wait(timeout=300) == 0, _log(tmp_path, 1, 0)

  def trainer(workdir):
    return two_hosts.trainer(
        workdir=tmp_path / workdir,
        released=released,
        num_train_steps=_NUM_STEPS,
    )

  def last(workdir):
    checkpointer = trainer(workdir).checkpointer
    state = checkpointer.restore(runs.state(trainer(workdir), seed=0))
    return runs.saved_leaves(state)

  trainer('whole').train()
  got, want = last('run'), last('whole')  # One process reads what two wrote.
  assert got['step'] == _NUM_STEPS
  assert got.keys() == want.keys()
  for path, leaf in want.items():
    np.testing.assert_allclose(
        got[path], leaf, rtol=1e-3, atol=1e-6, err_msg=path
    )
  assert all(np.any(x) for path, x in got.items() if path.endswith('.b'))

  # What there is one of, there is one of: not one of each host.
  run = tmp_path / 'run'
  names = {path.name for path in (run / 'checkpoints').iterdir()}
  assert names == {f'ckpt_{_NUM_STEPS - 1}', f'ckpt_{_NUM_STEPS}'}
  assert len(list(run.glob('train/events*'))) == 2  # One of each launch.
  first, then = (_steps(_log(tmp_path, launch, 0)) for launch in range(2))
  assert first == list(range(len(first))) and len(first) > 2
  # The step after the last that was saved, to the end.
  assert then == list(range(then[0], _NUM_STEPS + 1)) and then[0] > 0
  for launch in range(2):
    assert not _steps(_log(tmp_path, launch, 1))


def _log(folder, launch, index):
  return (folder / f'log_{launch}_{index}').read_text()


def _steps(log):
  """Steps whose loss was printed."""
  return [int(step) for step in re.findall(r'step +(\d+)  train', log)]
