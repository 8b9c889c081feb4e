"""What hides the notes of other libraries, and only that."""

import io
import subprocess
import sys

import pytest

from gemma4_lora import quiet


def test_what_the_user_set_stays():
  env = {'TF_CPP_MIN_LOG_LEVEL': '0'}
  quiet.set_defaults(env, has_tpu=True)
  assert env['TF_CPP_MIN_LOG_LEVEL'] == '0'
  assert env['TF_ENABLE_ONEDNN_OPTS'] == '0'
  assert 'TPU_WORKER_HOSTNAMES' not in env  # A TPU knows its hosts.
  quiet.set_defaults(env, has_tpu=False)
  assert env['TPU_WORKER_HOSTNAMES'] == 'localhost'


def test_libtpu_says_nothing():
  """In a process of its own, where it is loaded; TensorFlow: `jobs/xm_test.py`."""
  code = (
      'import gemma4_lora.quiet, jax;'
      'from jax.experimental import topologies as t; jax.devices();'
      't.get_topology_desc(platform="tpu", topology_name="v6e:1x1")'
  )
  pytest.importorskip('libtpu')
  done = subprocess.run(
      [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert not done.stderr


class _Terminal(io.StringIO):

  def isatty(self):
    return True


def test_who_waits_is_told(monkeypatch):
  for name in ('kauldron', 'ipykernel'):
    monkeypatch.delitem(sys.modules, name, raising=False)
  terminal, pipe = _Terminal(), io.StringIO()
  quiet.say_what_takes_long(terminal)
  quiet.say_what_takes_long(pipe)
  assert 'importing JAX, TensorFlow, gemma' in terminal.getvalue()
  assert not pipe.getvalue()
  monkeypatch.setitem(sys.modules, 'kauldron', quiet)
  quiet.say_what_takes_long(terminal)
  assert terminal.getvalue().count('\n') == 1


def test_importing_g4_changes_no_variable():
  code = (
      'import os; before = dict(os.environ); from gemma4_lora import g4;'
      'assert dict(os.environ) == before'
  )
  subprocess.run([sys.executable, '-c', code], check=True)
