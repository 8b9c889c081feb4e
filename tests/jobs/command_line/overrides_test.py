"""Overrides and the workdir; with a config's flag: `main_test.py`."""

import pytest

from gemma4_lora.jobs.command_line import _overrides


@pytest.mark.parametrize(
    ('argv', 'want'),
    [
        (['--cfg=a.py'], ['--cfg=a.py']),
        (['--workdir=w', '--cfg=a.py'], ['--cfg=a.py', '--cfg.workdir=w']),
        (['--workdir', 'w', '--cfg=a'], ['--cfg=a', '--cfg.workdir=w']),
        (['--cfg=a', '--cfg.workdir', 'w'], ['--cfg=a', '--cfg.workdir=w']),
        (
            ['--cfg=a', '-workdir=w', '--cfg.workdir=w', '--x=workdir'],
            ['--cfg=a', '--x=workdir', '--cfg.workdir=w'],
        ),
    ],
)
def test_workdir_of_kauldron(argv, want):
  assert _overrides.for_kauldron(argv) == want


def test_two_workdirs():
  with pytest.raises(ValueError, match='--workdir=a and --cfg.workdir=b are'):
    _overrides.for_kauldron(['--workdir=a', '--cfg=c', '--cfg.workdir=b'])
