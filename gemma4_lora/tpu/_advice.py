"""What to change so that a step fits, or runs faster."""

from collections.abc import Iterator
import math
from typing import Any

from kauldron import kd

from gemma4_lora.tpu import _plan_numbers

# Factor on an estimated batch, length, ..., which may be too large.
_CAUTION = 0.9
# Size of int4 relative to bfloat16, if all linears and tables are quantised.
_INT4_SHARE = 4.5 / 16


def advice_on(
    plan: _plan_numbers.PlanNumbers, trainer: kd.train.Trainer
) -> tuple[str, ...]:
  """Returns what to change, most promising first.

  Args:
    plan: A plan without advice.
    trainer: The Trainer that was planned.
  """
  advice = _to_fit(plan, trainer) if not plan.fits else _to_speed_up(plan)
  return tuple(advice)


def _to_fit(
    plan: _plan_numbers.PlanNumbers, trainer: kd.train.Trainer
) -> Iterator[str]:
  arguments = sum(plan.argument_bytes.values())
  limit = plan.hbm_bytes or 0
  if arguments <= limit:
    yield from _loss(plan, trainer)
    yield from _remat(trainer.model)
    yield from _smaller(plan, limit - arguments)
  else:
    chips = math.ceil(arguments * plan.num_devices / max(1, limit * _CAUTION))
    yield (
        f'chips: state and batch alone are {_gib(arguments)} on each device.'
        f' Spread over devices, they take {chips} or more of these.'
    )
  yield from _quantize(plan, trainer.model)
  if plan.num_devices == 1 or trainer.sharding.params is kd.sharding.REPLICATED:
    how = 'with' if plan.num_devices > 1 else 'on more of them,'
    yield (
        f'chips: {how} sharding=kd.sharding.ShardingStrategy(params='
        'kd.sharding.FSDPSharding()), each holds a part of the weights.'
    )
  else:
    yield 'chips: on more of them, each holds less.'


def _quantize(plan: _plan_numbers.PlanNumbers, model: Any) -> Iterator[str]:
  """Yields the advice to quantise the base of a `g4.nn.LoRA`."""
  if getattr(model, 'quantize', ()) is None:
    weights = plan.argument_bytes['weights']
    yield (
        "weights: with quantize='int4' of g4.nn.LoRA they take about"
        f' {_gib(_INT4_SHARE * weights)} of the {_gib(weights)}.'
    )


def _smaller(plan: _plan_numbers.PlanNumbers, room: int) -> Iterator[str]:
  """Yields smaller batches and lengths: temporaries grow with both."""
  temporaries = plan.temporary_bytes
  if not temporaries:
    return
  share = room / temporaries * _CAUTION
  per_device = plan.batch / plan.num_devices
  batch = int(per_device * share) * plan.num_devices
  if 0 < batch < plan.batch:
    yield f'batch: {batch} in place of {plan.batch} (an estimate).'
  if plan.length is not None:
    length = 2 ** int(math.log2(max(1.0, plan.length * share)))
    if length < plan.length:
      yield f'length: {length} in place of {plan.length} (an estimate).'
  yield '--sweep finds the largest of both that fit.'


def _remat(model: Any) -> Iterator[str]:
  """Activations, by the policy of our wrapper."""
  policy = getattr(model, 'remat', 'none')
  if policy != 'block':
    yield (
        "remat: with g4.nn.LoRA(remat='block') the backward pass computes"
        f' activations anew rather than keep them (now: {policy!r}).'
    )


def _loss(
    plan: _plan_numbers.PlanNumbers, trainer: kd.train.Trainer
) -> Iterator[str]:
  """Logits: those of all tokens at once, or of a chunk."""
  vocabulary = getattr(getattr(trainer.model, 'config', None), 'num_embed', 0)
  for name, loss in trainer.train_losses.items():
    if isinstance(loss, kd.losses.SoftmaxCrossEntropyWithIntLabels):
      tokens = plan.num_tokens / plan.num_devices
      yield (
          f'loss: train_losses[{name!r}] holds {_gib(tokens * vocabulary * 4)}'
          ' of logits in float32, more than once.'
          ' g4.losses.SoftmaxCrossEntropyWithIntLabels never does.'
      )
    elif hasattr(loss, 'chunk_size'):
      size = f'now: {loss.chunk_size}' if loss.chunk_size else 'the default now'
      yield f'loss: a smaller train_losses[{name!r}].chunk_size ({size}).'


def _to_speed_up(plan: _plan_numbers.PlanNumbers) -> Iterator[str]:
  limit, bound = plan.hbm_bytes, plan.bound
  if limit is None or bound is None:
    return
  if bound == _plan_numbers.Bound.MEMORY and plan.peak_bytes < limit / 2:
    yield (
        'Reading memory bounds the step, and'
        f' {plan.peak_bytes / limit:.0%} of the memory is used: a larger batch'
        ' reads the weights as often, for more tokens.'
    )
  if bound == _plan_numbers.Bound.LINKS:
    yield (
        'The step waits for the links between chips: a larger batch per chip'
        ' moves as much, for more tokens.'
    )


def _gib(num_bytes: float) -> str:
  return f'{num_bytes / 2**30:.2f} GiB'
