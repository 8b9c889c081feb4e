"""Lines before the first step: what trains, from which base, on which data."""

from collections.abc import Collection
from collections.abc import Iterator
import math
from typing import Any

import jax
from kauldron import kd
import tqdm

from gemma4_lora import _trees
from gemma4_lora.ckpts import _load_lora
from gemma4_lora.ckpts import _requests
from gemma4_lora.ckpts import _resumed
from gemma4_lora.ckpts.lora import _fingerprint
from gemma4_lora.train.progress import _peak_memory
from gemma4_lora.train.progress import _step_counts

_WIDTH = 6  # Width of `trains`, `memory`.


def say(lines: Iterator[str]) -> None:
  """Prints lines, on the first of several hosts."""
  made = list(lines)  # On all hosts: some have to compute them together.
  if jax.process_index() == 0:
    for line in made:
      tqdm.tqdm.write(line)  # Above a progress bar, not in it.


def of_model(
    trainer: kd.train.Trainer,
    params: Any,
    trained: Collection[_trees.Path],
    *,
    resumes: bool,
) -> Iterator[str]:
  """Yields lines on what trains, and from which base or checkpoint.

  Args:
    trainer: The trainer.
    params: Nested; arrays or shapes.
    trained: Paths of the leaves that the optimizer changes.
    resumes: Whether the checkpointer says what the run goes on from.
  """
  sizes = {
      path: math.prod(x.shape) for path, x in _trees.flatten(params).items()
  }
  total = sum(sizes.values())
  num = sum(size for path, size in sizes.items() if path in trained)
  lora = _fingerprint.find_lora(trainer.model)
  what = ''
  if lora is not None:
    adapted = lora.adapted
    ranks = ', '.join(map(str, sorted({x.rank for x in adapted})))
    count = sum(len(x.row.hf_names) for x in adapted)
    what = f'LoRA of rank {ranks} on {count} projections: '
  yield _line(
      'trains', f'{what}{num:,} of {total:,} parameters ({num / total:.2%})'
  )
  if not resumes:
    yield _line('from', _start(trainer.init_transform))


def of_data(trainer: kd.train.Trainer, batch: Any) -> Iterator[str]:
  """Yields lines on the training data and the memory in use.

  Args:
    trainer: The trainer.
    batch: The first batch, on devices.
  """
  parts = []
  size, steps = trainer.train_ds.batch_size, trainer.num_train_steps
  rows = _num_rows(trainer.train_ds)
  if rows:
    parts.append(f'{rows:,} rows')
  if rows and size and steps:
    parts.append(f'{steps:,} steps are {steps * size / rows:,.1f} epochs')
  shape = _step_counts.shape_of_tokens(batch, model=trainer.model)
  if shape is not None:
    counts = _step_counts.of_batch(
        batch, model=trainer.model, losses=trainer.train_losses
    )
    tokens, trained = counts['tokens'], counts.get('trained')
    first = (
        f'first batch: {" x ".join(map(str, shape))},'
        f' {1 - tokens / math.prod(shape):.0%} padding'
    )
    if trained is not None and tokens:
      first += f', {trained:,.0f} of {tokens:,.0f} tokens are trained'
      first += f' ({trained / tokens:.0%})'
    parts.append(first)
  if parts:
    yield _line('data', '; '.join(parts))
  if memory := _peak_memory.in_use_gib():
    yield _line('memory', '{:.2f} of {:.2f} GiB are in use'.format(*memory))
  yield _line('step', 'the first one is compiled, which takes a while')


def _start(transform: Any) -> str:
  base = _resumed.base_of(transform)
  loaded = [
      f'LoRA of {x.transform.path}'
      for x in _requests.steps(transform)
      if type(x.transform) is _load_lora.LoadLoRA
  ]
  return ', '.join(['a random base' if base == 'none' else base, *loaded])


def _num_rows(ds: Any) -> int | None:
  """Returns how many rows the source of a dataset has, if it says so."""
  try:
    return len(ds.data_source)
  except Exception:  # pylint: disable=broad-exception-caught
    return None  # Datasets of other classes may not know.


def _line(name: str, text: str) -> str:
  return f'{name:<{_WIDTH}}  {text}'
