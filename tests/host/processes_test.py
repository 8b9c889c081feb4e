"""Which process is which."""

import os
import subprocess
import sys
import time

import pytest

from gemma4_lora.host import _processes


@pytest.fixture
def child():
  process = subprocess.Popen(['sleep', '60'])
  yield process
  process.kill()
  process.wait()


def test_a_process_keeps_its_start_and_a_later_one_has_another(child):
  start = _processes.started(child.pid)
  assert start is not None
  time.sleep(0.05)  # The system counts in hundredths of a second.
  with subprocess.Popen(['sleep', '60']) as later:
    assert _processes.started(later.pid) not in (start, None)
    later.kill()
  assert _processes.started(child.pid) == start
  assert _processes.started(os.getpid()) not in (start, None)


def test_one_that_has_ended_has_no_start(child):
  child.kill()
  deadline = time.monotonic() + 30
  while _processes.started(child.pid) is not None:  # A zombie from now on.
    assert time.monotonic() < deadline
    time.sleep(0.01)
  child.wait()
  assert _processes.started(child.pid) is None


def test_processes_of_one_boot_have_one_machine():
  code = 'from gemma4_lora.host import _processes; print(_processes.machine())'
  done = subprocess.run(
      [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == _processes.machine()
