"""`python -m gemma4_lora train`, on two hosts that are killed."""

import multiprocessing
import pathlib
import re
import signal
import socket
import time

import numpy as np
import pytest

from gemma4_lora import g4
from tests.lib import random_params
from tests.lib import runs
from tests.lib import two_hosts

_ROOT = pathlib.Path(__file__).parent.parent.parent
_NUM_STEPS = 6


@pytest.fixture(name='start')
def _start(monkeypatch, tmp_path):
  """Starts both hosts, of four devices each.

  They are forked from a process that has imported all that they need, which is
  most of the time that one takes to start.
  """
  monkeypatch.setenv('JAX_NUM_CPU_DEVICES', '4')
  # Of a compilation cache, only the first host would have the programs, and not
  # wait as long for the other as that takes to compile.
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
  context = multiprocessing.get_context('forkserver')
  context.set_forkserver_preload(['tensorflow', 'tests.lib.two_hosts'])
  hosts = []

  def start(launch):
    with socket.socket() as s:
      s.bind(('127.0.0.1', 0))
      address = f'127.0.0.1:{s.getsockname()[1]}'
    argv = [
        'train',
        f'--cfg={_ROOT}/tests/lib/two_hosts_config.py',
        f'--cfg.workdir={tmp_path / "run"}',
        f'--cfg.released={tmp_path / "released"}',
        f'--cfg.num_train_steps={_NUM_STEPS}',
    ]
    for index in range(2):
      environment = {
          'JAX_COORDINATOR_ADDRESS': address,
          'JAX_NUM_PROCESSES': '2',
          'JAX_PROCESS_ID': str(index),
      }
      log = tmp_path / f'log_{launch}_{index}'
      host = context.Process(
          target=two_hosts.run_command, args=(argv, environment, str(log))
      )
      host.start()
      hosts.append(host)
    return hosts[-2:]

  yield start
  for host in hosts:
    host.kill()


def _wait_for_step(folder, step, hosts):
  saved = folder / 'run' / 'checkpoints' / f'ckpt_{step}'
  deadline = time.monotonic() + 300
  while not saved.exists():
    assert all(host.is_alive() for host in hosts), _log(folder, 0, 0)
    assert time.monotonic() < deadline, _log(folder, 0, 0)
    time.sleep(0.02)


def test_two_hosts_killed_one_by_one_and_resumed_are_the_whole_run(
    start, tmp_path
):
  """In one process: other hosts, other order of examples, the same numbers."""
  base = random_params.make(two_hosts.base_model())
  released = tmp_path / 'released'
  g4.testing.make_checkpoint(two_hosts.base_model(), released, params=base)
  hosts = start(launch=0)
  _wait_for_step(tmp_path, 2, hosts)
  for host in reversed(hosts):
    host.kill()
    host.join()
    assert host.exitcode == -signal.SIGKILL
  for host in start(launch=1):
    host.join(timeout=300)
    assert host.exitcode == 0, _log(tmp_path, 1, 0)

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
        got[path], leaf, rtol=1e-3, atol=1e-5, err_msg=path
    )
  assert all(np.any(x) for path, x in got.items() if path.endswith('.b'))

  # What there is one of, there is one of: not one of each host.
  run = tmp_path / 'run'
  names = {path.name for path in (run / 'checkpoints').iterdir()}
  assert names == {f'ckpt_{_NUM_STEPS - 1}', f'ckpt_{_NUM_STEPS}'}
  assert len(list(run.glob('train/events*'))) == 2  # One of each launch.
  first, then = (_steps(_log(tmp_path, launch, 0)) for launch in range(2))
  assert first == list(range(len(first))) and len(first) >= 2
  # From the last step that was saved, to the end.
  assert then == list(range(then[0], _NUM_STEPS + 1)) and then[0] > 0
  for launch in range(2):
    assert not _steps(_log(tmp_path, launch, 1))


def _log(folder, launch, index):
  return (folder / f'log_{launch}_{index}').read_text()


def _steps(log):
  """Steps whose loss was printed."""
  return [int(step) for step in re.findall(r'step +(\d+)  train', log)]
