"""Configs by name."""

import pathlib

import pytest

from gemma4_lora.jobs.command_line import _shipped

_ROOT = pathlib.Path(__file__).parents[3]


@pytest.mark.parametrize(
    'given',
    ['quickstart', 'quickstart.py', 'gemma4_lora.configs/quickstart.py'],
)
def test_a_name_is_a_shipped_config(given, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  path = pathlib.Path(_shipped.find(given))
  assert path.samefile(_ROOT / 'configs/quickstart.py')
  assert _shipped.find(f'{given}:x') == f'{path}:x'


def test_a_file_goes_before_a_name(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'quickstart.py').touch()
  assert _shipped.find('quickstart.py') == 'quickstart.py'
  for other in ('configs/quickstart.py', 'quick', 'no/such.py', ''):
    assert _shipped.find(other) == other


def test_a_command_takes_a_name(run_command, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  done = run_command('summary', '--cfg=quickstart', '--cfg.model.rank=2')
  assert done.returncode == 0, done.stderr
  assert 'trainable' in done.stdout
  done = run_command('summary', '--cfg=quickstrt')
  assert 'By name there are: gemma4_12b_lora' in done.stderr
  done = run_command('vertex', '--cfg=quickstart', '--dockerfile')
  assert 'COPY configs configs\nRUN pip install' in done.stdout
