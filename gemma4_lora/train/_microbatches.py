"""Gradients of a batch, a part of it at a time: those of the whole batch.

Averaging the losses of the parts would weigh a token more in a part that has
few. Here each part's loss is divided by what the whole batch's would be: the
number of its tokens that count.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import re
from typing import Any

from etils import epy
import flax
import jax
import jax.numpy as jnp
from kauldron import kd
from kauldron import kontext
from kauldron.losses import base as losses_base

_WHO = 'g4.train.TrainStep(num_microbatches=…)'

# What only the forward pass of a part has, and what only the whole batch has.
_OF_PART = ('preds', 'interms')
_OF_WHOLE = ('grads', 'updates', 'opt_state')

_is_state = kd.metrics.State.isinstance


@flax.struct.dataclass
class Parts:
  """States of a metric, of each part of the batch.

  They are merged outside of the compiled step: some states cannot be inside.
  """

  states: tuple[Any, ...]

  def merged(self) -> Any:
    return functools.reduce(lambda x, y: x.merge(y), self.states)


def merge(tree: Any) -> Any:
  """Merges the states of parts in a tree of states."""
  return jax.tree.map(
      lambda x: x.merged() if isinstance(x, Parts) else x,
      tree,
      is_leaf=lambda x: isinstance(x, Parts) or _is_state(x),
  )


def split(batch: Any, num: int, sharding: Any) -> Any:
  """Splits a batch; parts are along a new first axis.

  A part has every `num`th example, so that each device keeps its own.

  Args:
    batch: Arrays whose first axis is examples.
    num: Number of parts.
    sharding: Of a batch.

  Raises:
    ValueError: It cannot be split.
  """
  for path, x in jax.tree_util.tree_leaves_with_path(batch):
    if not x.ndim or x.shape[0] % num:
      name = jax.tree_util.keystr(path, simple=True, separator='.')
      raise ValueError(
          f'{_WHO}: batch.{name} is {x.shape}: its first axis, examples, cannot'
          f' be split into num_microbatches={num} equal parts. Change'
          ' batch_size= of the data, or num_microbatches=.'
      )
  parts = jax.tree.map(
      lambda x: x.reshape(-1, num, *x.shape[1:]).swapaxes(0, 1), batch
  )
  try:
    jax.eval_shape(lambda x: part(x, 0, sharding), parts)
  except ValueError as e:
    epy.reraise(
        e,
        prefix=(
            f'{_WHO}: num_microbatches={num} leaves too few examples for'
            ' sharding.batch: batch_size= should be a multiple of'
            ' num_microbatches times the number of devices. '
        ),
    )
  return parts


def part(parts: Any, index: Any, sharding: Any) -> Any:
  """Returns one part of what `split` made."""
  batch = jax.tree.map(
      lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), parts
  )
  return kd.sharding.with_sharding_constraint(batch, sharding)


def run(
    step: kd.train.TrainStep,
    context: kd.train.Context,
    *,
    num: int,
    needed: Sequence[bool],
) -> tuple[kd.train.Context, Any]:
  """Returns gradients and losses of a whole batch, part by part.

  Args:
    step: Gives model, losses, metrics, rngs and shardings.
    context: With the state and the whole batch.
    num: Number of parts.
    needed: Per leaf of the parameters, whether its gradient is. Others are 0.

  Returns:
    The context with gradients, collections and losses, and the states of those
    metrics and summaries that read the forward pass, by their place.

  Raises:
    ValueError: The batch, a loss or a metric cannot be taken apart.
  """
  parts = split(context.batch, num, step.sharding.batch)
  leaves, treedef = jax.tree.flatten(context.params)
  rngs = step.rng_streams.train_rngs(context.step)

  def forward(trained, collections, index):
    trained = iter(trained)
    params = [
        next(trained) if is_needed else leaf
        for leaf, is_needed in zip(leaves, needed, strict=True)
    ]
    of_part = context.replace(
        params=treedef.unflatten(params),
        collections=collections,
        batch=part(parts, index, step.sharding.batch),
    )
    of_part = kd.train.forward(
        of_part,
        model=step.model,
        # Dropout must not be the same in all parts.
        rngs={name: rng.fold_in(index) for name, rng in rngs.items()},
        is_training=True,
    )
    states = jax.tree.map(
        lambda loss: loss.get_state_from_context(of_part), step.aux.losses
    )
    _check_losses(states)
    return of_part, states

  trained = [
      x for x, is_needed in zip(leaves, needed, strict=True) if is_needed
  ]

  # jax drops the forward pass here, unless a mask depends on it.
  def count(collections, index):
    of_part, states = forward(trained, collections, index)
    counts = jax.tree.map(lambda x: x.count, states, is_leaf=_is_state)
    return of_part.collections, counts

  _, counts = jax.lax.scan(count, context.collections, jnp.arange(num))
  counts = jax.lax.stop_gradient(jax.tree.map(lambda x: x.sum(0), counts))

  def loss(trained, collections, index):
    of_part, states = forward(trained, collections, index)
    shares = jax.tree.map(
        lambda x, n: dataclasses.replace(x, count=n).compute(),
        states,
        counts,
        is_leaf=_is_state,
    )
    total = jax.tree.reduce(jnp.add, shares, initializer=jnp.asarray(0.0))
    metrics = _metrics(step, of_part)
    return total, (of_part.collections, states, metrics)

  def add(carry, index):
    sums, collections, total = carry
    (share, (collections, *states)), grads = jax.value_and_grad(
        loss, has_aux=True
    )(trained, collections, index)
    sums = jax.tree.map(lambda x, y: x + y.astype(x.dtype), sums, grads)
    return (sums, collections, total + share), states

  zeros = [jnp.zeros(x.shape, _sum_dtype(x.dtype)) for x in trained]
  (sums, collections, total), (losses, metrics) = jax.lax.scan(
      add,
      (zeros, context.collections, jnp.asarray(0.0)),
      jnp.arange(num),
  )
  grads = iter(sums)
  grads = [
      (next(grads) if is_needed else jnp.zeros_like(leaf)).astype(leaf.dtype)
      for leaf, is_needed in zip(leaves, needed, strict=True)
  ]
  context = context.replace(
      grads=treedef.unflatten(grads),
      collections=collections,
      loss_total=total,
      loss_states=jax.tree.map(
          lambda x: dataclasses.replace(
              x, value=x.value.sum(0), count=x.count.sum(0)
          ),
          losses,
          is_leaf=_is_state,
      ),
  )
  metrics = {
      place: Parts(
          states=tuple(
              jax.tree.map(lambda x, i=i: x[i], states) for i in range(num)
          )
      )
      for place, states in metrics.items()
  }
  return context, metrics


def with_metrics(
    step: kd.train.TrainStep,
    context: kd.train.Context,
    of_parts: Mapping[tuple[str, str], Parts],
) -> kd.train.Context:
  """Returns the context with the states of all metrics and summaries.

  Args:
    step: Gives the metrics.
    context: Of the whole step, updates included.
    of_parts: From `run`.
  """
  states = {
      kind: {
          name: of_parts[kind, name]
          if (kind, name) in of_parts
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


def _metrics(
    step: kd.train.TrainStep, context: kd.train.Context
) -> dict[tuple[str, str], Any]:
  """Returns the states of what reads the forward pass, of one part."""
  states = {}
  for kind, metrics in _all_metrics(step).items():
    for name, metric in metrics.items():
      roots = _roots(metric)
      if not roots & set(_OF_PART):
        continue
      if both := roots & set(_OF_WHOLE):
        raise ValueError(
            f'{_WHO}: train_{kind}.{name} reads {sorted(both)} of the whole'
            f' batch and {sorted(roots & set(_OF_PART))} of a part of it. Leave'
            ' it out, or set num_microbatches=1.'
        )
      states[kind, name] = _state(metric, context)
  return states


def _state(metric: Any, context: kd.train.Context) -> Any:
  """Returns the state of a metric, or of a tree of them."""
  return jax.tree.map(lambda m: m.get_state_from_context(context), metric)


def _roots(metric: Any) -> set[str]:
  """Returns what of the context a metric, or a tree of them, reads."""
  keys = [
      key
      for m in jax.tree.leaves(metric)
      for key in jax.tree.leaves(kontext.get_keypaths(m))
  ]
  return {re.split(r'[.\[]', key)[0] for key in keys if isinstance(key, str)}


def _check_losses(states: Any) -> None:
  """Raises unless all states of losses are a sum and a count."""
  for path, x in jax.tree_util.tree_leaves_with_path(states, is_leaf=_is_state):
    if not isinstance(x, losses_base.AllReduceMean):
      name = jax.tree_util.keystr(path, simple=True, separator='.')
      raise ValueError(
          f'{_WHO}: train_losses.{name} has a {type(x).__name__}: parts of a'
          ' batch add up only where a loss is a sum over a count'
          ' (kd.losses.Loss.State). Set num_microbatches=1.'
      )


def _sum_dtype(dtype: Any) -> Any:
  """Sums of many parts in bfloat16 would lose the small ones."""
  return jnp.promote_types(dtype, jnp.float32)
