"""What is logged of the steps since the last line."""

import types

import numpy as np
import pytest

from gemma4_lora.train.progress import _interval
from gemma4_lora.train.progress import _peak_memory

_TRAINER = types.SimpleNamespace(raw_cfg=None, schedules={})
_NAN = float('nan')


def _counts(tokens, trained=_NAN, norm=_NAN):
  return np.array([tokens, trained, norm], np.float32)


def _log(interval, step, *, last_step=20, **states):
  aux = interval.aux(
      _counts(9, 4, 0.5),
      trainer=_TRAINER,
      step=step,
      last_step=last_step,
      **states,
  )
  return aux.compute().metric_values


def test_tokens_are_a_mean_of_the_steps_since():
  interval = _interval.Interval()
  interval.add(_counts(1000))  # With the compiler.
  first = _log(interval, 1)
  assert first['metrics/grad_norm'] == 0.5
  assert not {x for x in first if 'per_step' in x or 'left' in x}
  interval.add(_counts(10, 4))
  interval.add(_counts(20, 6))
  second = _log(interval, 3)
  assert second['perf_stats/tokens_per_step'] == 15
  assert second['perf_stats/trained_tokens_per_step'] == 5
  interval.restart()
  interval.add(_counts(10))
  assert 'perf_stats/tokens_per_step' not in _log(interval, 4)


def test_what_is_left_is_in_the_pace_of_the_steps_since(monkeypatch):
  interval = _interval.Interval()
  now = iter([100.0, 180.0])
  monkeypatch.setattr(_interval.time, 'monotonic', lambda: next(now))
  _log(interval, 1)
  # 8 steps in 80 s.
  left = _log(interval, 9)['perf_stats/hours_left']
  assert left == pytest.approx(110 / 3600)


def test_checkpointers_see_kauldrons_metrics_alone():
  """They look for the best one there, and save all of them."""
  aux = _interval.Interval().aux(
      _counts(9, 4, 0.5), trainer=_TRAINER, step=1, last_step=None
  )
  assert 'metrics/grad_norm' in aux.compute().metric_values
  assert not aux.compute(flatten=False).metric_values


def test_peak_memory_is_known_here():
  assert 0.01 < _peak_memory.peak_gib() < 1000
