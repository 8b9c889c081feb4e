"""Flags of a command: what is wrong with them is a line."""

import pytest

from gemma4_lora.jobs.command_line import _arguments
from gemma4_lora.jobs.command_line import _config_file


def test_names_of_overrides():
  argv = ['', '--cfg=x.py', '--cfg.seed=7', '-cfg.a.b', '--nocfg.c', '--x.y=1']
  assert _arguments.overrides(argv) == ['seed', 'a.b', 'c']


def test_a_value_is_behind_an_equals_sign():
  _arguments.check_have_values(['', '--cfg.a', '--cfg.b=', '--step', '7'])
  for value in ('7', '-7', '-.5', 'x', ''):
    with pytest.raises(_config_file.ConfigError, match=f'--cfg.a={value}'):
      _arguments.check_have_values(['', '--cfg.a', value])


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--step=x'], 'flag --step=x: invalid literal'),
        (['--not_a_flag=1'], "Unknown command line flag 'not_a_flag'"),
        (['--cfg'], 'Missing value for flag --cfg'),
        (['--cfg.seed=7'], '--cfg=... is missing: the config of the run'),
    ],
)
def test_what_is_wrong_is_a_line(args, message, run_command):
  done = run_command('summary', *args)
  assert done.returncode == 1
  assert message in done.stderr
  assert done.stderr.count('\n') == 1
