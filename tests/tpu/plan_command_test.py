"""`python -m gemma4_lora plan`."""

import re

import pytest

from gemma4_lora.tpu import _plan_command

_CONFIG = """
from tests.lib import plan_configs


def get_config():
  return plan_configs.config(cut='one_layer')
"""


def test_a_config(tmp_path, monkeypatch, run_command):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  config = tmp_path / 'config.py'
  config.write_text(_CONFIG)
  done = run_command(
      'plan',
      f'--cfg={config}',
      '--cfg.model.targets=q',
      '--topology=cpu:2',
      '--batch=2',
      '--length=16',
  )
  assert done.returncode == 0, done.stderr
  assert 'cpu:2 (2 devices), batch 2 x 16 tokens' in done.stdout
  assert re.search(r'^fits: ', done.stdout, re.M)
  assert len(list(tmp_path.glob('gemma4_lora/plans/*.json'))) == 1


def _options(**changes):
  return {
      'topology': 'cpu',
      'with_sweep': False,
      'batch': None,
      'length': None,
      'with_logging': False,
      'cache': 'none',
  } | changes


@pytest.mark.parametrize('with_sweep', [False, True])
def test_what_has_no_answer_is_neither_yes_nor_no(capsys, with_sweep):
  options = _options(topology='v9:1x1', with_sweep=with_sweep)
  assert _plan_command.run(None, **options) == 2
  assert "no chip 'v9'" in capsys.readouterr().err
