"""Ctrl-C in a command."""

import os
import signal
import subprocess
import sys

import pytest

from gemma4_lora.commands import _interrupts


def test_it_is_an_exception_once_and_given_back():
  before = signal.getsignal(signal.SIGINT)
  signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    with _interrupts.taken():
      with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
      _interrupts.give_back()
      assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Another owner's.
    with _interrupts.taken():
      assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
  finally:
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize('where', ['in an import', 'a second time'])
def test_what_catches_all_does_not_keep_it_alive(where, tmp_path):
  kill = 'os.kill(os.getpid(), signal.SIGINT)'
  caught = f'import os, signal\ntry:\n  {kill}\nexcept BaseException:\n  pass\n'
  (tmp_path / 'imported.py').write_text(caught)
  body = 'import imported' if where == 'in an import' else f'{caught}{kill}'
  lines = ['from gemma4_lora.commands import _interrupts', 'import sys']
  lines += ['with _interrupts.taken():', *(f'  {x}' for x in body.splitlines())]
  done = subprocess.run(
      [sys.executable, '-c', '\n'.join([*lines, 'sys.exit(7)'])],
      env=os.environ
      | {'PYTHONPATH': os.pathsep.join([str(tmp_path), *sys.path])},
      capture_output=True,
      text=True,
      check=False,
  )
  assert done.returncode == 130, done.stderr
  assert done.stderr == 'gemma4_lora: stopped.\n'
