"""What the environment says of other hosts. That they join: `train_test.py`."""

import json
import os
import subprocess
import sys

import jax
import pytest

from gemma4_lora.jobs import _distributed

_NAMES = (
    'JAX_COORDINATOR_ADDRESS',
    'JAX_NUM_PROCESSES',
    'JAX_PROCESS_ID',
    'TPU_WORKER_HOSTNAMES',
    'CLUSTER_SPEC',
)


@pytest.fixture(name='env')
def _env(monkeypatch):
  for name in _NAMES:
    monkeypatch.delenv(name, raising=False)

  def set_env(*values, **others):
    names = dict(zip(_NAMES, values, strict=False)) | others
    for name, value in names.items():
      if value is not None:
        monkeypatch.setenv(name, value)

  return set_env


def test_one_host(env):
  assert not _distributed.initialize()
  env('localhost:1', '1', '0')
  assert not _distributed.initialize()


@pytest.mark.parametrize(
    ('values', 'says'),
    [
        (('a:1',), 'is set, but not JAX_NUM_PROCESSES, JAX_PROCESS_ID'),
        ((None, '2', '0'), 'is set, but not JAX_COORDINATOR_ADDRESS'),
        (('a:1', 'two', '0'), 'JAX_NUM_PROCESSES=two is not a number'),
        (('a:1', '2', '2'), 'JAX_PROCESS_ID=2 is not one of .*=2: .* 0 to 1'),
        (('a', '2', '0'), 'JAX_COORDINATOR_ADDRESS=a lacks a port'),
    ],
)
def test_an_environment_that_contradicts_itself(env, values, says):
  env(*values)
  with pytest.raises(ValueError, match=says):
    _distributed.initialize()


def _cluster(task):
  return json.dumps(
      {
          'cluster': {
              'workerpool1': ['b-0:2222', 'b-1:2222'],
              'workerpool0': ['a-0:2222'],
          },
          'environment': 'cloud',
          'task': task,
      }
  )


@pytest.mark.parametrize(
    ('pool', 'index', 'process_id'),
    [('workerpool0', 0, 0), ('workerpool1', 0, 1), ('workerpool1', 1, 2)],
)
def test_pools_of_vertex(pool, index, process_id):
  text = _cluster({'type': pool, 'index': index, 'trial': ''})
  assert _distributed._of_cluster(text) == {
      'coordinator_address': 'a-0:2222',
      'num_processes': 3,
      'process_id': process_id,
  }


def test_a_pool_of_one(env):
  spec = {
      'cluster': {'workerpool0': ['127.0.0.1:2222']},
      'task': {'type': 'workerpool0', 'index': 0},
  }
  env(CLUSTER_SPEC=json.dumps(spec))
  assert not _distributed.initialize()
  # Which may be a slice of several hosts: the TPU is asked, if there is one.
  assert _distributed._of_cluster(json.dumps(spec)) is None


@pytest.mark.parametrize('text', ['{', '[]', _cluster({'type': 'x'}), '3'])
def test_what_is_no_cluster(env, text):
  env(CLUSTER_SPEC=text)
  with pytest.raises(ValueError, match='CLUSTER_SPEC is not what Vertex AI'):
    _distributed.initialize()


def test_hosts_of_a_slice_without_a_tpu(env):
  """jax looks for the TPU: in a process where nothing has used it yet."""
  env(TPU_WORKER_HOSTNAMES='t-0,t-1', TPU_WORKER_ID='0')
  code = 'from gemma4_lora.jobs import _distributed as d; d.initialize()'
  done = subprocess.run(
      [sys.executable, '-c', code],
      env=os.environ | {'PYTHONPATH': os.getcwd()},
      capture_output=True,
      text=True,
      check=False,
  )
  assert 'but jax finds no TPU on this one' in done.stderr


@pytest.mark.parametrize('hosts', ['localhost', ''])
def test_one_host_of_a_slice(env, hosts):
  env(TPU_WORKER_HOSTNAMES=hosts, TPU_WORKER_ID='0')
  assert not _distributed.initialize()


def test_whether_there_may_be_several(env):
  assert not _distributed.may_have_several()
  env('a:1', '2', '0')
  assert _distributed.may_have_several()
  env('a:1', '1', '0')
  assert not _distributed.may_have_several()
  env('a:1', 'two', '0')  # `initialize` says so.
  assert not _distributed.may_have_several()


@pytest.mark.parametrize('value', ['soon', '0'])
def test_a_heartbeat_that_is_no_time(env, value):
  env('a:1', '2', '0', GEMMA4_LORA_HEARTBEAT_TIMEOUT=value)
  with pytest.raises(ValueError, match=f'HEARTBEAT_TIMEOUT={value} '):
    _distributed.initialize()


# Of jaxlib 0.12.0.
_DUMP = 'F1130 client.h:86] Terminating process because the JAX distributed '


@pytest.mark.parametrize(
    ('dump', 'which'),
    [
        (f'{_DUMP}… Task 1 heartbeat timeout. This indicates', 'host 1 is'),
        (
            f'{_DUMP}… (stopped sending heartbeats):\n3\nThe tasks',
            'host 3 is',
        ),
        (
            f'{_DUMP}… CoordinationService/PollForError:\n:UNAVAILABLE: Stream',
            'host 0, which coordinates, is',
        ),
        ('UNKNOWN: Gloo AllGather failed: Connection reset', 'another host is'),
    ],
)
def test_which_host_is_gone(dump, which):
  text = _distributed.explain_lost(dump)
  assert text.startswith(f'{which} gone')
  assert 'GEMMA4_LORA_HEARTBEAT_TIMEOUT' in text


def test_an_error_that_is_a_lost_host():
  lost = jax.errors.JaxRuntimeError('UNKNOWN: Gloo AllGather failed: x')
  assert _distributed.is_lost(lost)
  assert not _distributed.is_lost(
      jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED')
  )
  assert not _distributed.is_lost(ValueError('Gloo'))
