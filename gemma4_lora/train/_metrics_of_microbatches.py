"""Metrics and summaries of a batch that is taken in microbatches."""

from collections.abc import Mapping
import functools
import re
from typing import Any

import flax
import jax
from kauldron import kd
from kauldron import kontext

# Context fields that only a microbatch has, and those that only the whole batch
# has.
_OF_MICROBATCH = ('preds', 'interms')
_OF_WHOLE = ('grads', 'updates', 'opt_state')

_is_state = kd.metrics.State.isinstance


@flax.struct.dataclass
class MicrobatchStates:
  """States of a metric, of each microbatch.

  They are merged outside the compiled step, as some states cannot be merged
  inside.
  """

  states: tuple[Any, ...]

  def merged(self) -> Any:
    return functools.reduce(lambda x, y: x.merge(y), self.states)


def merge(tree: Any) -> Any:
  """Merges the states of microbatches in a tree of states."""
  return jax.tree.map(
      lambda x: x.merged() if isinstance(x, MicrobatchStates) else x,
      tree,
      is_leaf=lambda x: isinstance(x, MicrobatchStates) or _is_state(x),
  )


def of_microbatch(
    step: kd.train.TrainStep, context: kd.train.Context, *, who: str
) -> dict[tuple[str, str], Any]:
  """Returns the states of metrics that read the forward pass of one microbatch.

  Args:
    step: Gives the metrics.
    context: The context of a microbatch's forward pass.
    who: What asks, for messages.

  Raises:
    ValueError: A metric also reads the whole batch, or is a norm over it.
  """
  states = {}
  for kind, metrics in _all_metrics(step).items():
    for name, metric in metrics.items():
      roots = _roots(metric)
      if not roots & set(_OF_MICROBATCH):
        continue
      if both := roots & set(_OF_WHOLE):
        raise ValueError(
            f'{who}: train_{kind}.{name} reads {sorted(both)} of the whole'
            f' batch and {sorted(roots & set(_OF_MICROBATCH))} of a part of it.'
            ' Leave it out, or set num_microbatches=1.'
        )
      if any(_norms_examples(m, context) for m in jax.tree.leaves(metric)):
        raise ValueError(
            f'{who}: train_{kind}.{name} takes one norm over all examples of a'
            ' batch, which is not the mean of the norms of its parts. Set axis='
            ' of kd.metrics.Norm to axes within an example, as -1,'
            ' aggregation_type="concat", or num_microbatches=1.'
        )
      states[kind, name] = _state(metric, context)
  return states


def with_metrics(
    step: kd.train.TrainStep,
    context: kd.train.Context,
    of_microbatches: Mapping[tuple[str, str], MicrobatchStates],
) -> kd.train.Context:
  """Returns the context with the states of all metrics and summaries.

  Args:
    step: Gives the metrics.
    context: The context of the whole step, updates included.
    of_microbatches: From `of_microbatch`, of all microbatches.
  """
  states = {
      kind: {
          name: of_microbatches[kind, name]
          if (kind, name) in of_microbatches
          else _state(metric, context)
          for name, metric in metrics.items()
      }
      for kind, metrics in _all_metrics(step).items()
  }
  return context.replace(
      metric_states=states['metrics'], summary_states=states['summaries']
  )


def reads_gradients(step: kd.train.TrainStep) -> bool:
  """Whether a metric or a summary looks at gradients."""
  return any(
      'grads' in _roots(metric)
      for metrics in _all_metrics(step).values()
      for metric in metrics.values()
  )


def _all_metrics(step: kd.train.TrainStep) -> dict[str, Mapping[str, Any]]:
  return {'metrics': step.aux.metrics, 'summaries': step.aux.summaries}


def _state(metric: Any, context: kd.train.Context) -> Any:
  """Returns the state of a metric, or of a tree of them."""
  return jax.tree.map(lambda m: m.get_state_from_context(context), metric)


def _roots(metric: Any) -> set[str]:
  """Returns the context keys that a metric, or a tree of metrics, reads."""
  keys = [
      # In a metric around another one (`kd.metrics.TreeReduce`), it is a path.
      str(key)
      for m in jax.tree.leaves(metric)
      for key in jax.tree.leaves(kontext.get_keypaths(m))
  ]
  return {re.split(r'[.\[]', key)[0] for key in keys}


def _norms_examples(metric: Any, context: kd.train.Context) -> bool:
  """Whether a metric is a norm along the axis of examples."""
  kwargs = kontext.resolve_from_keyed_obj(context, metric)
  while isinstance(inner := getattr(metric, 'metric', None), kd.metrics.Metric):
    metric = inner
  if not isinstance(metric, kd.metrics.Norm):
    return False
  if metric.aggregation_type == 'concat':  # Sums of powers add up.
    return False
  if metric.axis is None:
    return True
  axes = metric.axis if isinstance(metric.axis, tuple) else (metric.axis,)
  return any(
      axis % x.ndim == 0
      for x in jax.tree.leaves(kwargs['tensor'])
      for axis in axes
  )
