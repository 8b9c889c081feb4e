"""What a watched process prints, and how it ends."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

_HEAD = """
import os, signal, sys, time
from gemma4_lora.host import _watched
_watched.watch(b'FATAL', lambda x: f'explained {x.count("stack")}', status=76)
"""


def _start(code):
  return subprocess.Popen(
      [sys.executable, '-u', '-c', _HEAD + textwrap.dedent(code)],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      start_new_session=True,
  )


@pytest.mark.parametrize(
    ('code', 'status', 'out', 'errors'),
    [
        ("print('o'); os.write(2, b'e'); sys.exit(75)", 75, 'o\n', 'e'),
        ('os.kill(os.getpid(), signal.SIGKILL)', -9, '', ''),
        ("os.write(2, b'a\\nb'); os.abort()", -6, '', 'a\nb'),
        (
            "os.write(2, b'a\\nb\\nF1 FATAL x\\nstack\\n');"
            " os.write(2, b'stack\\n'); os.abort()",
            76,
            '',
            'a\nb\ngemma4_lora: explained 2\n',
        ),
        # A process of its own that goes on keeps nobody waiting.
        (
            "os.fork() or (os.setpgid(0, 0), time.sleep(20)); os.write(2, b'a')",
            0,
            '',
            'a',
        ),
    ],
)
def test_it_ends_as_its_child(code, status, out, errors):
  process = _start(code)
  start = time.monotonic()
  assert process.wait(60) == status
  assert time.monotonic() - start < 15
  if 'fork' not in code:
    assert process.communicate() == (out, errors)
  process.stdout.close()
  process.stderr.close()


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_signals_are_handed_on_once(number):
  process = _start(f"""
    count = 0
    def add(*_):
      global count
      count += 1
    signal.signal({int(number)}, add)
    print(os.getpgrp())
    end = time.monotonic() + 60
    while not count and time.monotonic() < end:
      time.sleep(0.05)
    time.sleep(0.3)
    sys.exit(10 + count)
  """)
  # A terminal sends it to the group of the parent: the child is in none of it.
  assert int(process.stdout.readline()) != process.pid
  os.killpg(process.pid, number)
  assert process.wait(60) == 11
  process.communicate()


def test_the_child_is_killed_with_it():
  process = _start("""
    print(os.getpid())
    time.sleep(60)
  """)
  child = int(process.stdout.readline())
  process.kill()
  process.wait()
  deadline = time.monotonic() + 30
  while os.path.exists(f'/proc/{child}'):
    assert time.monotonic() < deadline
    time.sleep(0.02)
  process.communicate()  # Waits for whoever has its stdout, so not before.
