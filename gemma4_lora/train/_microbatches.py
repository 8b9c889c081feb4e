"""Gradients of a whole batch, computed one microbatch at a time.

A mean over the losses of microbatches would give more weight to tokens of
microbatches with few tokens. Here each microbatch's loss is divided by the
number of counted tokens of the whole batch.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

from etils import epy
import jax
import jax.numpy as jnp
from kauldron import kd
from kauldron.losses import base as losses_base

from gemma4_lora.train import _metrics_of_microbatches

_WHO = 'g4.train.TrainStep(num_microbatches=…)'

_is_state = kd.metrics.State.isinstance


def run(
    step: kd.train.TrainStep,
    context: kd.train.Context,
    *,
    num: int,
    needed: Sequence[bool],
) -> tuple[kd.train.Context, Any]:
  """Returns gradients and losses of a whole batch, by microbatches.

  Args:
    step: Gives model, losses, metrics, rngs and shardings.
    context: With the state and the whole batch.
    num: Number of microbatches.
    needed: Per leaf of the parameters, whether its gradient is needed. Other
      gradients are 0.

  Returns:
    The context with gradients, collections and losses, and the states of those
    metrics and summaries that read the forward pass, by their place.

  Raises:
    ValueError: The batch, a loss or a metric cannot be taken apart.
  """
  microbatches = split(context.batch, num, step.sharding.batch)
  params = _Params.of(context.params, needed)
  forward = _Forward(
      step=step,
      context=context,
      microbatches=microbatches,
      params=params,
      rngs=step.rng_streams.train_rngs(context.step),
  )
  counts = _counts(forward, num)
  (sums, collections, total), (losses, metrics) = _sums(forward, counts, num)
  context = context.replace(
      grads=params.gradients(sums),
      collections=collections,
      loss_total=total,
      loss_states=jax.tree.map(_summed, losses, is_leaf=_is_state),
  )
  return context, {
      place: _metrics_of_microbatches.MicrobatchStates(
          states=tuple(
              jax.tree.map(lambda x, i=i: x[i], states) for i in range(num)
          )
      )
      for place, states in metrics.items()
  }


def split(batch: Any, num: int, sharding: Any) -> Any:
  """Splits a batch; microbatches are along a new first axis.

  A microbatch has every `num`th example, so that examples stay on their
  devices.

  Args:
    batch: Arrays whose first axis is examples.
    num: Number of microbatches.
    sharding: How a batch is sharded.

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
  microbatches = jax.tree.map(
      lambda x: x.reshape(-1, num, *x.shape[1:]).swapaxes(0, 1), batch
  )
  try:
    jax.eval_shape(lambda x: microbatch(x, 0, sharding), microbatches)
  except ValueError as e:
    epy.reraise(
        e,
        prefix=(
            f'{_WHO}: num_microbatches={num} leaves too few examples for'
            ' sharding.batch: batch_size= should be a multiple of'
            ' num_microbatches times the number of devices. '
        ),
    )
  return microbatches


def microbatch(microbatches: Any, index: Any, sharding: Any) -> Any:
  """Returns one microbatch of the output of `split`."""
  batch = jax.tree.map(
      lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False),
      microbatches,
  )
  return kd.sharding.with_sharding_constraint(batch, sharding)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Params:
  """Parameters; some of them get a gradient.

  Attributes:
    leaves: All of them.
    treedef: Their structure.
    needed: Per leaf, whether its gradient is needed.
  """

  leaves: Sequence[Any]
  treedef: Any
  needed: Sequence[bool]

  @classmethod
  def of(cls, params: Any, needed: Sequence[bool]) -> '_Params':
    leaves, treedef = jax.tree.flatten(params)
    return cls(leaves=leaves, treedef=treedef, needed=needed)

  @property
  def trained(self) -> list[Any]:
    """The leaves with a gradient."""
    return [x for x, needed in self._each() if needed]

  def replace(self, trained: Sequence[Any]) -> Any:
    """Returns the parameters with those leaves replaced."""
    new = iter(trained)
    leaves = [next(new) if needed else leaf for leaf, needed in self._each()]
    return self.treedef.unflatten(leaves)

  def gradients(self, sums: Sequence[Any]) -> Any:
    """Returns gradients of all leaves, in their dtypes."""
    new = iter(sums)
    grads = [
        (next(new) if needed else jnp.zeros_like(leaf)).astype(leaf.dtype)
        for leaf, needed in self._each()
    ]
    return self.treedef.unflatten(grads)

  def _each(self) -> list[tuple[Any, bool]]:
    return list(zip(self.leaves, self.needed, strict=True))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Forward:
  """The forward pass of one microbatch.

  Attributes:
    step: Gives model, losses and shardings.
    context: The context of the whole batch.
    microbatches: From `split`.
    params: The model's parameters.
    rngs: The step's random keys.
  """

  step: kd.train.TrainStep
  context: kd.train.Context
  microbatches: Any
  params: _Params
  rngs: Mapping[str, Any]

  def __call__(
      self, trained: Sequence[Any], collections: Any, index: Any
  ) -> tuple[kd.train.Context, Any]:
    """Returns the context of a microbatch, and the states of its losses."""
    context = self.context.replace(
        params=self.params.replace(trained),
        collections=collections,
        batch=microbatch(self.microbatches, index, self.step.sharding.batch),
    )
    context = kd.train.forward(
        context,
        model=self.step.model,
        # Dropout must not be the same in all microbatches.
        rngs={name: rng.fold_in(index) for name, rng in self.rngs.items()},
        is_training=True,
    )
    states = jax.tree.map(
        lambda loss: loss.get_state_from_context(context), self.step.aux.losses
    )
    _check_losses(states)
    return context, states


def _counts(forward: _Forward, num: int) -> Any:
  """Returns the divisor of each loss of the whole batch."""
  trained = forward.params.trained

  # jax drops the forward pass here, unless a mask depends on it.
  def count(collections, index):
    after, states = forward(trained, collections, index)
    counts = jax.tree.map(lambda x: x.count, states, is_leaf=_is_state)
    return after.collections, counts

  _, counts = jax.lax.scan(count, forward.context.collections, jnp.arange(num))
  return jax.lax.stop_gradient(jax.tree.map(lambda x: x.sum(0), counts))


def _sums(forward: _Forward, counts: Any, num: int) -> Any:
  """Adds up the gradients of all microbatches.

  Args:
    forward: The forward pass.
    counts: The divisor of each loss.
    num: Number of microbatches.

  Returns:
    The sums of gradients, the collections and the total loss; and, of each
    microbatch along a first axis, the states of losses and metrics.
  """
  trained = forward.params.trained

  def loss(trained, collections, index):
    after, states = forward(trained, collections, index)
    shares = jax.tree.map(
        lambda x, n: dataclasses.replace(x, count=n).compute(),
        states,
        counts,
        is_leaf=_is_state,
    )
    total = jax.tree.reduce(jnp.add, shares, initializer=jnp.asarray(0.0))
    metrics = _metrics_of_microbatches.of_microbatch(
        forward.step, after, who=_WHO
    )
    return total, (after.collections, states, metrics)

  def add(carry, index):
    sums, collections, total = carry
    (share, (collections, *states)), grads = jax.value_and_grad(
        loss, has_aux=True
    )(trained, collections, index)
    sums = jax.tree.map(lambda x, y: x + y.astype(x.dtype), sums, grads)
    return (sums, collections, total + share), states

  zeros = [jnp.zeros(x.shape, _sum_dtype(x.dtype)) for x in trained]
  start = (zeros, forward.context.collections, jnp.asarray(0.0))
  return jax.lax.scan(add, start, jnp.arange(num))


def _summed(state: Any) -> Any:
  """Returns the state of a loss from its states of all microbatches."""
  return dataclasses.replace(
      state, value=state.value.sum(0), count=state.count.sum(0)
  )


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
  """In bfloat16, sums over many microbatches would lose small terms."""
  return jnp.promote_types(dtype, jnp.float32)
