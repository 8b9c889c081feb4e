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
        (['--verbosity=x'], "'x' is not a valid integer"),
        (
            ['--cfg=quickstart', '--no_option=1'],
            'summary has no option --no_option',
        ),
        (['--cfg'], "Option '--cfg' requires an argument"),
        (['--cfg.seed=7'], '--cfg=... is missing: the config of the run'),
    ],
)
def test_what_is_wrong_is_a_line(args, message, run_command):
  done = run_command('summary', *args)
  assert done.returncode == 1
  assert message in done.stderr
  assert done.stderr.count('\n') == 1
