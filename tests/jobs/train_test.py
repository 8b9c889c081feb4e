"""`python -m gemma4_lora` as a shell runs it; `train` on hosts that are lost."""

import os
import pathlib
import re
import signal
import socket
import sys
import time
import types

from absl import flags
import jax
from kauldron import kd
from kauldron import konfig
import numpy as np
import pytest

from gemma4_lora import _trees
from gemma4_lora import g4
from gemma4_lora.host import _storage_errors
from gemma4_lora.jobs import _train
from tests.lib import forked
from tests.lib import random_params
from tests.lib import runs
from tests.lib import two_hosts

_ROOT = pathlib.Path(__file__).parent.parent.parent
_FOREVER = 1_000_000


@pytest.fixture(name='run')
def _run():
  """Runs a command in a process of its own, and gives the process.

  It is forked from one that has imported all that it needs, which is most of
  the time that a command takes to start.
  """
  context = forked.server()
  started = []

  def run(argv, log, **environment):
    process = context.Process(
        target=two_hosts.run_command, args=(argv, environment, str(log))
    )
    process.start()
    started.append(process)
    return process

  yield run
  for process in started:
    process.kill()


@pytest.mark.parametrize(
    ('argv', 'environment', 'message'),
    [
        (['sumary'], {}, "Did you mean 'summary'?"),
        (
            ['train', f'--cfg={_ROOT}/configs/quickstrt.py'],
            {},
            f'Did you mean {_ROOT}/configs/quickstart.py?',
        ),
        (
            ['train', f'--cfg={_ROOT}/configs/quickstart.py', 'seed=7'],
            {},
            "gemma4_lora: train takes flags alone. Got: ['seed=7']",
        ),
        (
            ['train', f'--cfg={_ROOT}/configs/quickstart.py', '--cfg.sed=7'],
            {},
            'Did you mean --cfg.seed?',
        ),
        (
            ['train', f'--cfg={_ROOT}/configs/quickstart.py', '--rank=8'],
            {},
            "flag 'rank'. Did you mean --cfg.model.rank?",
        ),
        (
            [
                'train',
                f'--cfg={_ROOT}/configs/quickstart.py',
                '--cfg.model.rank=0',
            ],
            {},
            'gemma4_lora: cfg.model: rank= takes a positive integer. Got: 0\n',
        ),
        (
            ['train', f'--cfg={_ROOT}/configs/quickstart.py'],
            {'JAX_PROCESS_ID': '1'},
            'gemma4_lora: For several hosts, JAX_PROCESS_ID is set',
        ),
    ],
)
def test_what_is_wrong_is_a_line(argv, environment, message, run, tmp_path):
  process = run(argv, tmp_path / 'log', **environment)
  process.join(timeout=300)
  assert process.exitcode == 1
  log = (tmp_path / 'log').read_text()
  assert message in log
  assert 'Traceback' not in log


def test_errors_of_a_run_that_are_a_line():
  assert _train._line(FloatingPointError('step 3 …')) == 'step 3 …'
  assert 'num_epochs=None' in _train._line(StopIteration())
  assert _train._line(_storage_errors.ExplainedConnectionError('x')) == 'x'
  lost = _storage_errors.ExplainedConnectionError('x')
  assert _train._line(lost, lambda: 'Saved: 7.') == 'x Saved: 7.'
  lost = _storage_errors.ExplainedConnectionError(
      'The last checkpoint there: 8'
  )
  assert _train._line(lost, lambda: 'Saved: 7.') == str(lost)
  assert _train._line(KeyError('x'), lambda: 'Saved: 7.') is None
  assert _train._line(ValueError('x')) is None
  with jax.debug_nans(True):  # Its traceback says where.
    assert _train._line(FloatingPointError('nan')) is None


def test_what_we_refuse_is_a_line():
  """What Python raises in our own lines keeps its traceback."""
  with pytest.raises(ValueError, match='rank= takes') as refused:
    g4.nn.LoRA(rank=0, model=None)
  assert 'rank= takes a positive integer' in _train._line(refused.value)
  nothing = types.SimpleNamespace(split=lambda _: [])
  with pytest.raises(ValueError, match='not enough values') as ours:
    _trees.put({}, nothing, None)
  assert _train._line(ours.value) is None


_CHECKPOINTED = """
from kauldron import konfig

with konfig.imports():
  from kauldron import kd


def get_config():
  return konfig.ConfigDict({
      'workdir': '/somewhere',
      'checkpointer': kd.ckpts.Checkpointer(
          save_interval_steps=7, max_to_keep=None
      ),
  })
"""


@pytest.fixture(name='prepare')
def _prepare(tmp_path, monkeypatch):
  """Prepares a config as `train` does; returns it as Kauldron sees it."""
  config = tmp_path / 'config.py'
  config.write_text(_CHECKPOINTED)

  def prepare(*overrides, trains=True):
    values = flags.FlagValues()
    konfig.DEFINE_config_file('cfg', None, '', flag_values=values)
    argv = ['', f'--cfg={config}', *overrides]
    monkeypatch.setattr(sys, 'argv', argv)  # It looks there for overrides.
    values(argv)
    _train._prepare(values['cfg'], trains=trains)
    return values['cfg'].value

  return prepare


def test_kauldrons_checkpointer_is_one_that_saves_when_stopped(prepare, capsys):
  checkpointer = konfig.resolve(prepare().checkpointer)
  assert type(checkpointer) is g4.ckpts.Checkpointer
  assert checkpointer.save_interval_steps == 7
  assert checkpointer.max_to_keep is None
  assert 'g4.ckpts.Checkpointer takes its place' in capsys.readouterr().err


def test_other_checkpointers_stay(prepare, capsys):
  name = 'gemma4_lora.g4:ckpts.LoRACheckpointer'
  cfg = prepare(f'--cfg.checkpointer.__qualname__={name}')
  assert cfg.checkpointer['__qualname__'] == name
  assert prepare('--cfg.checkpointer=None').checkpointer is None
  # An evaluation saves nothing.
  cfg = prepare(trains=False)
  assert type(konfig.resolve(cfg.checkpointer)) is kd.ckpts.Checkpointer
  assert not capsys.readouterr().err


def test_kauldrons_writer_is_one_that_prints(prepare):
  trainer = '--cfg.__qualname__=kauldron.kd:train.Trainer'
  ours = 'gemma4_lora.g4:train.TerminalWriter'
  assert prepare(trainer).writer['__qualname__'] == ours
  assert prepare(trainer, '--cfg.writer=None').writer is None
  assert 'writer' not in prepare(trainer, trains=False)
  assert 'writer' not in prepare()


def test_a_workdir_that_is_no_path(prepare):
  with pytest.raises(ValueError, match="--cfg.workdir: 'gs:/b/x' .*'gs://b/x'"):
    prepare('--cfg.workdir=gs:/b/x')


def _hang(log):
  """Is a run whose bucket is silent, and then answers, and is silent again."""
  with open(log, 'w') as file:
    os.dup2(file.fileno(), 2)
  _train._WATCH_SECONDS = _train._AGAIN_SECONDS = 0.01
  answers = iter([None, 'silent', None, 'silent', 'silent for 9 s'])
  _train._watch(lambda: next(answers))
  time.sleep(60)


def test_a_run_that_waits_for_a_silent_bucket_ends(tmp_path):
  process = forked.server().Process(target=_hang, args=(tmp_path / 'log',))
  process.start()
  process.join(30)
  assert process.exitcode == 1
  assert (tmp_path / 'log').read_text() == '\ngemma4_lora: silent for 9 s\n'


_PLANNED = """
from tests.lib import plan_configs


def get_config():
  return plan_configs.config(cut='one_layer')
"""


def test_a_plan(run, tmp_path):
  """A process can set its number of devices once: the plan makes its own."""
  config = tmp_path / 'config.py'
  config.write_text(_PLANNED)
  flags = ['--cfg.model.targets=q', '--topology=cpu:2', '--batch=2']
  process = run(
      ['plan', f'--cfg={config}', *flags, '--length=16'],
      tmp_path / 'log',
      XDG_CACHE_HOME=str(tmp_path),
  )
  process.join(timeout=300)
  log = (tmp_path / 'log').read_text()
  assert process.exitcode == 0, log
  assert 'cpu:2 (2 devices), batch 2 x 16 tokens' in log
  assert re.search(r'^fits: ', log, re.M)
  assert len(list(tmp_path.glob('gemma4_lora/plans/*.json'))) == 1


@pytest.fixture(name='start')
def _start(run, tmp_path):
  """Starts both hosts, of four devices each."""

  def start(launch, num_train_steps=_FOREVER, evaluates_at=-1):
    with socket.socket() as s:
      s.bind(('127.0.0.1', 0))
      address = f'127.0.0.1:{s.getsockname()[1]}'
    argv = [
        'train',
        f'--cfg={_ROOT}/tests/lib/two_hosts_config.py',
        f'--cfg.workdir={tmp_path / "run"}',
        f'--cfg.released={tmp_path / "released"}',
        f'--cfg.num_train_steps={num_train_steps}',
        f'--cfg.evaluates_at={evaluates_at}',
    ]
    return [
        run(
            argv,
            tmp_path / f'log_{launch}_{index}',
            JAX_COORDINATOR_ADDRESS=address,
            JAX_NUM_PROCESSES='2',
            JAX_PROCESS_ID=str(index),
            JAX_NUM_CPU_DEVICES='4',
            # Of a compilation cache, only the first host would have the programs,
            # and not wait as long for the other as that takes to compile.
            JAX_COMPILATION_CACHE_DIR='',
            GEMMA4_LORA_HEARTBEAT_TIMEOUT='10',
        )
        for index in range(2)
    ]

  return start


def _wait_for(what, many, folder, launch, hosts):
  """Waits until the first host of a launch has printed so many of something."""
  deadline = time.monotonic() + 300
  while len(re.findall(what, _log(folder, launch, 0))) < many:
    assert all(host.is_alive() for host in hosts), _log(folder, launch, 0)
    assert time.monotonic() < deadline, _log(folder, launch, 0)
    time.sleep(0.02)


def _saved(folder):
  names = (folder / 'run' / 'checkpoints').glob('ckpt_*')
  steps = [path.name.removeprefix('ckpt_') for path in names]
  return max(int(step) for step in steps if step.isdigit())


def test_two_hosts_stopped_and_lost_and_resumed_are_the_whole_run(
    start, tmp_path
):
  """In one process: other hosts, other order of examples, the same numbers."""
  base = random_params.make(two_hosts.base_model())
  released = tmp_path / 'released'
  g4.testing.make_checkpoint(two_hosts.base_model(), released, params=base)

  # One is told to stop while both evaluate, and both end at one step.
  hosts = start(launch=0, evaluates_at=3)
  _wait_for('endless: a batch', 3, tmp_path, 0, hosts)
  os.kill(hosts[1].pid, signal.SIGTERM)
  for host in hosts:
    host.join(timeout=25)
    assert host.exitcode == 75, _log(tmp_path, 0, 0)
  stopped = _saved(tmp_path)
  assert stopped == 3
  assert f'Preempted: saved step {stopped} in' in _log(tmp_path, 0, 0)

  # One is gone, and the other ends by itself, with a line.
  hosts = start(launch=1)
  _wait_for(r'step +\d+  train', 2, tmp_path, 1, hosts)
  hosts[1].kill()
  killed = time.monotonic()
  hosts[0].join(timeout=100)
  assert time.monotonic() - killed < 40
  log = _log(tmp_path, 1, 0)
  assert hosts[0].exitcode == 76, log
  assert f'goes on from step {stopped} of {tmp_path}/run (saved' in log
  assert ' is gone: this one ends, too.' in log.strip().splitlines()[-1]
  assert 'stack trace' not in log and 'Fatal Python error' not in log
  assert 'Traceback' not in log

  lost = _saved(tmp_path)
  last = lost + 2
  for host in start(launch=2, num_train_steps=last):
    host.join(timeout=300)
    assert host.exitcode == 0, _log(tmp_path, 2, 0)

  def trainer(workdir):
    return two_hosts.trainer(
        workdir=tmp_path / workdir,
        released=released,
        num_train_steps=last,
    )

  def saved_leaves(workdir):
    checkpointer = trainer(workdir).checkpointer
    state = checkpointer.restore(runs.state(trainer(workdir), seed=0))
    return runs.saved_leaves(state)

  trainer('whole').train()
  got, want = saved_leaves('run'), saved_leaves(
      'whole'
  )  # One process reads what two wrote.
  assert got['step'] == last
  assert got.keys() == want.keys()
  for path, leaf in want.items():
    np.testing.assert_allclose(
        got[path], leaf, rtol=1e-3, atol=1e-5, err_msg=path
    )
  assert all(np.any(x) for path, x in got.items() if path.endswith('.b'))

  # What there is one of, there is one of: not one of each host.
  run = tmp_path / 'run'
  names = {path.name for path in (run / 'checkpoints').iterdir()}
  assert names == {f'ckpt_{last - 1}', f'ckpt_{last}'}
  assert len(list(run.glob('train/events*'))) == 3  # One of each launch.
  first, *others = (_steps(_log(tmp_path, n, 0)) for n in range(3))
  assert first == list(range(stopped))
  # From the last step that was saved.
  for steps, start_step in zip(others, (stopped, lost), strict=True):
    assert steps == list(range(start_step, steps[-1] + 1))
  assert others[1][-1] == last
  for launch in range(3):
    assert not _steps(_log(tmp_path, launch, 1))


def _log(folder, launch, index):
  path = folder / f'log_{launch}_{index}'
  return path.read_text() if path.exists() else ''


def _steps(log):
  """Steps whose loss was printed."""
  return [int(step) for step in re.findall(r'step +(\d+)  train', log)]
