"""A plan without an answer. One with an answer: `jobs/train_test.py`."""

import pytest

from gemma4_lora.tpu import _plan_command


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
  assert 'no such chip' in capsys.readouterr().err
