"""An evaluation of a run that is asked to stop ends between two batches."""

import functools

from kauldron import kd
import pytest

from gemma4_lora.ckpts import _stoppable


class _Evaluator(kd.evals.EvaluatorBase):
  """Counts batches; its dataset may not be made where it does not run."""

  seen: list
  written: list
  num_batches: int | None = 3
  on_batch: object = None

  @functools.cached_property
  def ds_iter(self):
    assert self.num_batches is not None
    return range(self.num_batches)

  def evaluate(self, state, step):
    assert len(self.ds_iter) == self.num_batches
    for batch in self.ds_iter:
      self.seen.append(batch)
      self.on_batch(batch)
    self.written.append(state)
    return state


@pytest.fixture(name='asked')
def _asked():
  return []


@pytest.fixture(name='make')
def _make(asked):
  def make(at=None, **kwargs):
    kwargs = {'run': kd.evals.EveryNSteps(2)} | kwargs
    made = _Evaluator(
        seen=[],
        written=[],
        on_batch=lambda batch: asked.append(batch) if batch == at else None,
        **kwargs,
    )
    for _ in range(2):  # The second run of one trainer changes nothing.
      _stoppable.make([made], lambda: bool(asked))
    return made

  return make


def test_a_run_that_goes_on_evaluates_all(make):
  evaluator = make()
  for _ in range(2):
    assert evaluator.maybe_eval(step=2, state='state') == 'state'
  assert evaluator.seen == [0, 1, 2] * 2
  assert evaluator.written == ['state'] * 2
  assert evaluator.maybe_eval(step=3, state='state') is None
  assert len(evaluator.seen) == 6


def test_it_ends_after_the_batch_at_hand_and_writes_nothing(make, asked):
  evaluator = make(at=1)
  assert evaluator.maybe_eval(step=2, state='state') is None
  assert evaluator.seen == [0, 1] and not evaluator.written
  # Those after it do not begin.
  assert evaluator.maybe_eval(step=2, state='state') is None
  assert evaluator.seen == [0, 1]


def test_one_that_reads_its_data_itself_does_not_begin(asked):
  class Own(kd.evals.EvaluatorBase):

    def evaluate(self, state, step):
      return 'evaluated'

  evaluator = Own(run=kd.evals.EveryNSteps(1))
  _stoppable.make([evaluator], lambda: bool(asked))
  assert evaluator.maybe_eval(step=1, state=None) == 'evaluated'
  asked.append('SIGTERM')
  assert evaluator.maybe_eval(step=2, state=None) is None


def test_batches_of_another_job_are_left_alone(make):
  standalone = kd.evals.StandaloneEveryCheckpoint(executor=None)
  evaluator = make(run=standalone, num_batches=None)
  assert evaluator.maybe_eval(step=2, state='state') is None


def test_an_error_of_an_evaluation_is_one(make):
  def fail(batch):
    raise ValueError(f'bad batch {batch}')

  evaluator = make()
  object.__setattr__(evaluator, 'on_batch', fail)
  with pytest.raises(ValueError, match='Evaluator eval failed.*bad batch 0'):
    evaluator.maybe_eval(step=2, state='state')
