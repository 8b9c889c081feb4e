"""The command, where what it needs itself is not there."""

import pathlib
import subprocess
import sys

import pytest

from gemma4_lora.doctor import _finding

_README = pathlib.Path(__file__).parents[2] / 'README.md'


@pytest.mark.parametrize('module', ['packaging', 'tomllib'])
def test_a_python_without_what_it_needs_hears_what_to_type(module):
  code = (
      f'import sys; sys.modules[{module!r}] = None\n'
      'from gemma4_lora.doctor import _command\n'
      'sys.exit(_command.main([]))'
  )
  done = subprocess.run(
      [sys.executable, '-c', code], capture_output=True, text=True, check=False
  )
  assert done.returncode == 1
  assert 'WRONG  Python: ' in done.stdout and f'no {module}' in done.stdout
  assert f'Type: {_finding.BRING_PYTHON}' in done.stdout
  assert 'Traceback' not in done.stderr


def test_the_readme_brings_the_same_python():
  assert f'\n{_finding.BRING_PYTHON}\n' in _README.read_text()
