"""Checks early the metric by which a checkpointer keeps the best steps.

Kauldron reads it only when it first deletes a step, which may be an hour into
the run.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import difflib
import math
from typing import Any

from absl import logging
from kauldron import kd
from kauldron import kontext

STANDALONE = (
    kd.evals.StandaloneEveryCheckpoint,
    kd.evals.StandaloneLastCheckpoint,
)
_TRAIN = 'train'
_MODES = ('max', 'min')
_SAVES = 3  # How many saves are checked in advance.


def check_mode(mode: str, *, who: str) -> None:
  """Raises for an unknown `best_mode=`."""
  if mode not in _MODES:
    raise ValueError(f'{who}: best_mode= takes one of {_MODES}. Got: {mode!r}')


def check(
    checkpointer: kd.ckpts.Checkpointer, trainer: kd.train.Trainer, *, who: str
) -> None:
  """Raises if a run could not compare its checkpoints.

  Args:
    checkpointer: A checkpointer, with or without `best_metric_path=`.
    trainer: The run.
    who: The checkpointer, for messages.

  Raises:
    ValueError: The metric does not exist, or has no value when a step is saved.
  """
  path = checkpointer.best_metric_path
  if path is None:
    return
  known = list(_names(trainer))
  if not any(_fits(path, name) for name in known):
    close = difflib.get_close_matches(path, known, n=1)
    hint = f' Did you mean {close[0]!r}?' if close else ''
    raise ValueError(
        f'{who}: best_metric_path={path!r} is no metric of the run, which has'
        f' {", ".join(known) or "none"}. It is NAME.METRIC: of an evaluator that'
        f' runs along with training, or train.METRIC.{hint}'
    )
  _check_times(checkpointer, trainer, path.partition('.')[0], who=who)


def comparable(metrics: Any, path: str | None, *, who: str) -> Any:
  """Returns metrics of a step, or None if it cannot be compared by them.

  Args:
    metrics: As Kauldron gives them to `save`.
    path: `best_metric_path=`.
    who: The checkpointer, for messages.

  Raises:
    ValueError: They have other metrics of the group, but not this one.
  """
  group = (path or '').partition('.')[0]
  if path is None or metrics is None or group not in metrics:
    return None if path else metrics
  try:
    value = float(kontext.get_by_path(metrics, path))
  except (LookupError, TypeError, ValueError, AttributeError):
    raise ValueError(
        f'{who}: best_metric_path={path!r} is no number of the metrics, which'
        f' are {group}: {metrics[group]}.'
    ) from None
  if math.isfinite(value):
    return metrics
  logging.warning('%s: %s is %s: the step is kept.', who, path, value)
  return None


def _names(trainer: kd.train.Trainer) -> Iterator[str]:
  """Yields names that a metric may have; `NAME.` if any may follow."""
  for name in trainer.train_metrics:
    yield f'{_TRAIN}.{name}'
  for evaluator in trainer.evals.values():
    if isinstance(evaluator.run, STANDALONE):
      continue
    metrics = getattr(evaluator, 'metrics', None)
    if not isinstance(metrics, Mapping):
      yield f'{evaluator.name}.'
      continue
    for name in metrics:
      yield f'{evaluator.name}.{name}'


def _fits(path: str, name: str) -> bool:
  # A metric may return a dict.
  return path.startswith(name) and (
      path == name or name.endswith('.') or path[len(name)] in '.['
  )


def _check_times(
    checkpointer: kd.ckpts.Checkpointer,
    trainer: kd.train.Trainer,
    group: str,
    *,
    who: str,
) -> None:
  """Raises if some saved steps will not have the metric."""
  interval = checkpointer.save_interval_steps
  if checkpointer.max_to_keep is None or checkpointer.save_on_steps:
    return
  steps = [interval * (i + 1) for i in range(_SAVES)]
  steps = [x for x in steps if x <= (trainer.num_train_steps or x)]
  saves = (
      f'{who}: best_metric_path={checkpointer.best_metric_path!r}: steps are'
  )
  if group == _TRAIN:
    every = trainer.log_metrics_every
    if any((x - 1) % every for x in steps):
      raise ValueError(
          f'{saves} saved every {interval} steps, and train metrics are there'
          f' after the step before alone if log_metrics_every=1. Got: {every}'
      )
    return
  run = next(x.run for x in trainer.evals.values() if x.name == group)
  if not all(run.should_eval_in_train(x) for x in steps):
    raise ValueError(
        f'{saves} saved every {interval} steps, and {group!r} runs at others:'
        f' {run}. Set save_interval_steps= to a multiple of its n.'
    )
