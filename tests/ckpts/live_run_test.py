"""Hosts that are told to stop agree on a step, or on a batch of an evaluation.

And a run whose bucket is silent says so.
"""

import os
import signal
import socket
import time

from etils import epath
import pytest

from gemma4_lora.ckpts import _live_run
from gemma4_lora.host import _live_owner
from tests.lib import forked
from tests.lib import stopped_hosts

_TIMEOUT_S = 100


@pytest.fixture(name='start')
def _start(tmp_path):
  """Starts two hosts; returns the processes, and what they say."""
  context = forked.server()
  started = []

  def start(*batches):
    with socket.socket() as s:
      s.bind(('127.0.0.1', 0))
      address = f'127.0.0.1:{s.getsockname()[1]}'
    pipes = []
    for index, of_host in enumerate(batches):
      here, there = context.Pipe(duplex=False)
      process = context.Process(
          target=stopped_hosts.train,
          args=(address, index, tmp_path, of_host, there),
      )
      process.start()
      there.close()
      started.append(process)
      pipes.append(here)
    return started, pipes

  yield start
  for process in started:
    process.kill()


def _said(pipe, *, until):
  """Returns what a host says, to a step or to its end."""
  said = []
  while until not in said:
    assert pipe.poll(_TIMEOUT_S), said
    said.append(pipe.recv())
    assert len(said) < 1000
  return said


@pytest.mark.parametrize(
    'last',
    [
        pytest.param({}, id='between steps'),
        pytest.param({4: None}, id='in an evaluation'),
    ],
)
def test_hosts_stop_at_one_step(last, start):
  """Also if they had other numbers of batches before."""
  at = stopped_hosts.EVALUATED
  hosts, pipes = start({at: 50}, {at: 1} | last)
  before = [_said(pipe, until=4) for pipe in pipes]
  os.kill(hosts[0].pid, signal.SIGTERM)
  after = [_said(pipe, until='stopped') for pipe in pipes]
  for host in hosts:
    host.join(_TIMEOUT_S)
    assert host.exitcode == 0
  steps = [x[:-1] for x in after]
  assert steps[0] == steps[1]
  if last:
    assert not steps[0]
  assert before[0] == before[1]


def _be_silent(buckets):
  """Is a run in a process that sees a bucket."""
  os.environ['GEMMA4_LORA_BUCKET_TIMEOUT'] = '0.1'
  _live_owner.BEAT_SECONDS = 0.2
  run = _live_run.LiveRun(epath.Path('gs://runs/run'), who='T')
  ownership = _live_owner.Ownership.take(
      'gs://runs/run/owner.json', beat_seconds=0.2
  )
  run._ownership = ownership
  run.train(lambda: None, first_step=0)
  run.saved_step = 3
  time.sleep(2)  # It waits, and the bucket answers.
  assert _live_run.silence() is None
  buckets.fail(delay_s=1000)
  deadline = time.monotonic() + 60
  while (line := _live_run.silence()) is None:
    assert time.monotonic() < deadline
    time.sleep(0.05)
  assert 'T: gs://runs/run has not answered for ' in line
  assert 'as far as this run knows: step 3.' in line
  run.asked_to_stop()  # At a step: it goes on by itself.
  assert _live_run.silence() is None
  os._exit(0)


def test_a_run_that_waits_for_a_silent_bucket_says_so(buckets):
  buckets.make('runs')
  buckets.call(_be_silent, buckets)
