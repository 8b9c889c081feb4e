"""`python -m gemma4_lora vertex`: its flags are tested in `main_test.py`."""

import pytest

from gemma4_lora.jobs import _plan_first
from gemma4_lora.jobs import _vertex_command
from gemma4_lora.jobs import _yaml
from gemma4_lora.tpu import _plan_command as plan_command
from tests.lib import jobs


@pytest.fixture(name='planner')
def _planner(monkeypatch):
  """A planner that answers at once; the real one is asked in `main_test.py`."""
  asked = []

  def set_status(status):
    def run(cfg, *, topology, **kwargs):
      asked.append((cfg, topology, kwargs['cache']))
      print('the plan')
      return status

    monkeypatch.setattr(plan_command, 'run', run)
    return asked

  return set_status


def _run(*, plan=True, force=False, **changes):
  request = jobs.request_of(dry_run=True, **changes)
  return _vertex_command.run(
      'cfg', request, plan=plan, force=force, cache='none'
  )


def test_a_config_that_fits_is_printed(planner, capsys):
  asked = planner(0)
  assert _run(topology='v6e:2x4') == 0
  assert asked == [('cfg', 'v6e:2x4', 'none')]
  out, err = capsys.readouterr()
  assert 'the plan' in err and 'the plan' not in out
  assert (
      _yaml.from_yaml(out) == jobs.request_of(topology='v6e:2x4').job().job_spec
  )
  assert out.startswith(
      '# configs/quickstart.py on v6e:2x4: 8 x v6e in 1 x ct6e-standard-8t.\n'
      '# gcloud ai custom-jobs create --config=job.yaml --region=us-east5'
      ' --project=my-project --display-name=quickstart\n'
  )


@pytest.mark.parametrize(
    ('status', 'says'), [(1, 'does not fit v6e:1x1'), (2, 'there is no plan')]
)
def test_one_that_does_not_goes_no_further(planner, capsys, status, says):
  planner(status)
  assert _run() == status
  out, err = capsys.readouterr()
  assert not out
  assert says in err and 'Nothing was submitted' in err and '--force' in err
  assert _run(force=True) == 0
  out, err = capsys.readouterr()
  assert 'ct6e-standard-1t' in out
  assert says in err and 'Going on: --force.' in err


def test_without_a_plan(planner, capsys):
  asked = planner(1)
  assert _run(plan=False) == 0
  assert not asked
  assert 'not planned: --noplan' in capsys.readouterr().err


def test_what_is_wrong_is_said_before_minutes_of_planning(planner):
  asked = planner(0)
  with pytest.raises(ValueError, match='--topology=v6e:9x9'):
    _run(topology='v6e:9x9')
  assert not asked


def test_statuses_that_the_planner_has():
  has = {plan_command._DOES_NOT_FIT, plan_command._NO_ANSWER}
  assert set(_plan_first._SAYS_NO) == has
