"""Commands, as a shell runs them."""

import pathlib
import subprocess
import sys

_ROOT = pathlib.Path(__file__).parent.parent
_CONFIG = '--cfg=configs/gemma4_e2b_lora_mtnt.py'


def _run(*args):
  return subprocess.run(
      [sys.executable, '-m', 'gemma4_lora', *args],
      cwd=_ROOT,
      capture_output=True,
      text=True,
      check=False,
  )


def test_summary_of_a_config_with_an_override():
  done = _run('summary', _CONFIG, '--cfg.model.rank=8')
  assert done.returncode == 0, done.stderr
  assert '13,166,592 trainable' in done.stdout  # Half of rank 16.


def test_a_misspelt_command():
  done = _run('sumary', _CONFIG)
  assert done.returncode != 0
  assert "Did you mean 'summary'?" in done.stdout + done.stderr


def test_without_a_config():
  done = _run('summary')
  assert done.returncode != 0
  assert '--cfg=... is missing' in done.stdout + done.stderr
