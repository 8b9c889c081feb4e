"""What to change so that a step fits, or runs faster."""

from collections.abc import Iterator
import math
from typing import Any

from kauldron import kd

from gemma4_lora.tpu import _plan

# Of a batch, length, ...: an estimate may be wrong by this much.
_CAUTION = 0.9


def advice_on(plan: _plan.Plan, trainer: kd.train.Trainer) -> tuple[str, ...]:
  """Returns what to change, most promising first.

  Args:
    plan: Without advice.
    trainer: That it is of.
  """
  advice = _to_fit(plan, trainer) if not plan.fits else _to_speed_up(plan)
  return tuple(advice)


def _to_fit(plan: _plan.Plan, trainer: kd.train.Trainer) -> Iterator[str]:
  arguments = sum(plan.argument_bytes.values())
  limit = plan.hbm_bytes or 0
  many = plan.num_devices > 1
  if arguments > limit:
    chips = math.ceil(arguments * plan.num_devices / max(1, limit * _CAUTION))
    yield (
        f'chips: state and batch alone are {_gib(arguments)} on each device.'
        f' Sharded, they take {chips} or more of these chips, or a chip with'
        ' more memory.'
    )
  if not many or _is_replicated(plan, trainer):
    how = '' if many else 'more chips, and '
    yield (
        f'chips: {how}sharding=kd.sharding.ShardingStrategy(params='
        'kd.sharding.FSDPSharding()) spreads weights over them.'
    )
  if arguments <= limit:
    yield from _smaller(plan, limit - arguments)
  yield from _remat(trainer.model)
  yield from _loss(plan, trainer)


def _smaller(plan: _plan.Plan, room: int) -> Iterator[str]:
  """Of the batch and the length: temporaries grow with both."""
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
  """Activations: our wrapper's policy, where it has one."""
  policy = getattr(model, 'remat', None)
  if policy in (None, 'none'):
    yield (
        "remat: g4.nn.LoRA(remat='block') computes activations anew in the"
        ' backward pass rather than keep them.'
    )


def _loss(plan: _plan.Plan, trainer: kd.train.Trainer) -> Iterator[str]:
  """Logits: those of all tokens at once, in float32."""
  config = getattr(trainer.model, 'config', None)
  vocabulary = getattr(config, 'num_embed', None)
  full = [
      name
      for name, loss in trainer.train_losses.items()
      if isinstance(loss, kd.losses.SoftmaxCrossEntropyWithIntLabels)
  ]
  if full and vocabulary:
    tokens = plan.num_tokens / plan.num_devices
    yield (
        f'loss: train_losses[{full[0]!r}] makes {_gib(tokens * vocabulary * 4)}'
        ' of logits in float32, more than once. A loss of g4.losses takes them'
        ' in chunks of tokens.'
    )
    return
  chunk = next(
      (
          f'{name}.{field}={getattr(loss, field)}'
          for name, loss in trainer.train_losses.items()
          for field in ('chunk_size', 'chunk', 'num_chunk_tokens')
          if getattr(loss, field, None)
      ),
      None,
  )
  if chunk:
    yield f'loss: a smaller {chunk}.'


def _is_replicated(plan: _plan.Plan, trainer: kd.train.Trainer) -> bool:
  return trainer.sharding.params is kd.sharding.REPLICATED and bool(plan.batch)


def _to_speed_up(plan: _plan.Plan) -> Iterator[str]:
  limit, bound = plan.hbm_bytes, plan.bound
  if limit is None or bound is None:
    return
  if bound == _plan.Bound.MEMORY and plan.peak_bytes < limit / 2:
    yield (
        'The step waits for memory, which is half empty: a larger batch reads'
        ' the weights as often, for more tokens.'
    )
  if bound == _plan.Bound.LINKS:
    yield (
        'The step waits for the links between chips: a larger batch per chip'
        ' moves as much, for more tokens.'
    )


def _gib(num_bytes: float) -> str:
  return f'{num_bytes / 2**30:.2f} GiB'
