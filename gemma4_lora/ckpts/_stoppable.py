"""Lets a stopping run end evaluations between two batches."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import functools
from typing import Any

from kauldron import kd

_BATCHES = 'ds_iter'  # A cached property of Kauldron's and gemma's evaluators.
_EVAL = 'maybe_eval'


class _Ended(BaseException):
  """Ends an evaluation. No `Exception`: evaluators add their name to these."""


class _Batches:
  """The batches of an evaluator, until the run should stop."""

  def __init__(self, batches: Any, asked: Callable[[], Any]):
    self._batches, self._asked = batches, asked

  def __iter__(self) -> Iterator[Any]:
    for batch in self._batches:
      if self._asked():
        raise _Ended
      yield batch

  def __len__(self) -> int:
    return len(self._batches)

  def __getattr__(self, name: str) -> Any:
    if name.startswith('__') or name == '_batches':  # While it is copied.
      raise AttributeError(name)
    return getattr(self._batches, name)


def make(
    evaluators: Iterable[kd.evals.EvaluatorBase],
    asked: Callable[[], Any],
    *,
    at_end: Callable[[], None] = lambda: None,
) -> None:
  """Lets evaluators of a trainer end before their last batch.

  Such an evaluation writes and returns nothing; the resumed run evaluates its
  step again. Evaluators that read `ds=` in their own way run to their end, or
  do not begin.

  Kauldron has no hook between two batches, so this changes the objects: their
  `maybe_eval`, and what they iterate over. Remove this when Kauldron's loop has
  such a hook.

  Args:
    evaluators: Those of a trainer. A second call changes nothing.
    asked: Whether the run should stop. Of several hosts, each calls it once
      before an evaluation and once for each batch.
    at_end: Is called after an evaluation that did not fail.
  """
  for evaluator in evaluators:
    if _EVAL not in vars(evaluator):
      vars(evaluator)[_EVAL] = functools.partial(
          _maybe_eval, evaluator, evaluator.maybe_eval, asked, at_end
      )


def _maybe_eval(
    evaluator: kd.evals.EvaluatorBase,
    maybe_eval: Callable[..., Any],
    asked: Callable[[], Any],
    at_end: Callable[[], None],
    *,
    step: int,
    state: Any,
) -> Any:
  """Calls `maybe_eval` of an evaluator; returns None if the run should stop."""
  if not evaluator.run.should_eval_in_train(step) or asked():
    return None
  batches = getattr(evaluator, _BATCHES, None)
  if batches is not None and not isinstance(batches, _Batches):
    vars(evaluator)[_BATCHES] = _Batches(batches, asked)
  try:
    aux = maybe_eval(step=step, state=state)
  except _Ended:
    aux = None
  at_end()
  return aux
