"""Checks that datasets have enough rows for the batches and steps of a run."""

from collections.abc import Iterator
import dataclasses
import math
from typing import Any

from grain import python as grain
import jax
from kauldron import kd

from gemma4_lora.data import _pipeline

_WHO = 'g4.train.TrainStep'


def check(trainer: kd.train.Trainer, *, num_steps: int | None) -> None:
  """Raises if a batch cannot be split over devices, or the data end too soon.

  Args:
    trainer: The trainer.
    num_steps: How many batches training takes; None if it is not known.

  Raises:
    ValueError: A dataset does not fit the run.
  """
  num_shards = _num_shards(trainer.sharding.batch)
  for name, ds, num_batches in _datasets(trainer, num_steps):
    if num_shards and isinstance(ds, kd.data.Pipeline) and ds.batch_size:
      _check_size(name, ds, num_shards, num_batches)
  ds: Any = trainer.train_ds
  length = _length(ds)
  if length is not None and num_steps is not None and length < num_steps:
    raise ValueError(
        f'{_WHO}: train_ds ends after {length} batches (num_epochs='
        f'{ds.num_epochs}, batch_size={ds.batch_size}), and the run takes'
        f' {num_steps}. Set num_epochs=None, to repeat it, or'
        f' num_train_steps={length - 1}: Kauldron counts from step 0 to'
        ' num_train_steps, that one included.'
    )


def _check_size(
    name: str, ds: Any, num_shards: int, num_batches: int | None
) -> None:
  """Raises if a batch of a dataset, or its last one, cannot be split."""
  size = ds.batch_size
  if size % num_shards:
    fitting = max(num_shards, size // num_shards * num_shards)
    raise ValueError(
        f'{_WHO}: {name} has batch_size={size}, which cannot be split over'
        f' {num_shards} devices. Set batch_size={fitting}, or another multiple'
        f' of {num_shards}; or sharding.batch=kd.sharding.REPLICATED.'
    )
  keeps_last = getattr(ds, 'batch_drop_remainder', None) == 'keep'
  num_rows = _num_rows(ds) if keeps_last else None
  if num_rows is None:
    return
  is_reached = num_batches is None or num_batches > num_rows // size
  if is_reached and num_rows % size % num_shards:
    raise ValueError(
        f'{_WHO}: the last batch of {name} has {num_rows % size} of {num_rows}'
        f' rows, which cannot be split over {num_shards} devices. Set'
        ' batch_drop_remainder="drop" or "pad", or another batch_size= than'
        f' {size}.'
    )


def _datasets(
    trainer: kd.train.Trainer, num_steps: int | None
) -> Iterator[tuple[str, Any, int | None]]:
  """Yields names, datasets, and how many batches are taken of each."""
  yield 'train_ds', trainer.train_ds, num_steps
  for name, evaluator in (trainer.evals or {}).items():
    ds = getattr(evaluator, 'ds', None)
    if ds is not trainer.train_ds:
      num_batches = getattr(evaluator, 'num_batches', None)
      yield f'evals.{name}.ds', ds, num_batches


def _num_shards(sharding: Any) -> int | None:
  """Returns how often the first axis of a batch is cut; None if unknown."""
  if not isinstance(sharding, jax.sharding.NamedSharding) or not sharding.spec:
    return None
  names = sharding.spec[0] or ()
  names = (names,) if isinstance(names, str) else names
  return math.prod(sharding.mesh.shape[x] for x in names)


def _length(ds: Any) -> int | None:
  """Returns an upper bound of the batches of a dataset that ends."""
  if not isinstance(ds, kd.data.py.PyGrainPipeline) or ds.num_epochs is None:
    return None
  try:
    return len(ds)
  except TypeError:
    return None


def _num_rows(ds: Any) -> int | None:
  """Returns how many rows a dataset has in all; None if that is not known."""
  if _length(ds) is None or jax.process_count() > 1:
    return None
  if any(isinstance(x, grain.FilterTransform) for x in _pipeline.walk(ds)):
    return None
  return len(dataclasses.replace(ds, batch_size=None))
