"""`python -m gemma4_lora show`: what a config trains on."""

from collections.abc import Iterator
import sys
from typing import Any

from absl import logging
from kauldron import konfig
import numpy as np

from gemma4_lora.data import _first_fit
from gemma4_lora.data import _malformed
from gemma4_lora.data import _show
from gemma4_lora.data.reports import _counts
from gemma4_lora.data.reports import _parts
from gemma4_lora.host import _escapes

_WHO = 'show'


def run(
    cfg: Any,
    *,
    dataset: str,
    num_shown: int,
    count: int | None,
    show_malformed: bool,
) -> bool:
  """Prints counts and examples of a config's data.

  Args:
    cfg: The config of a run.
    dataset: Which of its datasets.
    num_shown: How many rows to show.
    count: How many rows to count; None for all.
    show_malformed: Whether to show malformed rows, and no others.

  Returns:
    Whether training would accept the rows that were read.

  Raises:
    ValueError: There is no such dataset, or it cannot be read.
  """
  # A row may have characters that a terminal cannot print.
  reconfigure = getattr(sys.stdout, 'reconfigure', None)
  if reconfigure is not None:
    reconfigure(errors='backslashreplace')
  logging.set_verbosity(logging.ERROR)  # Malformed rows are printed here.
  ds = konfig.resolve(_node(cfg, dataset))
  is_ok = True
  for part in list(_parts.parts_of(ds, name=dataset)):
    counts = _counts.count(part, most=count, num_shown=num_shown)
    for line in _lines(part, counts):
      print(_escapes.escaped(line))
    if show_malformed:
      for line in _malformed_lines(counts):
        print(_escapes.escaped(line))
    else:
      for text in _pictures(part, counts):
        print(f'\n{text}')
    print(flush=True)
    is_ok &= not _stops(part, counts)
  return is_ok


def _node(cfg: Any, path: str) -> Any:
  """Returns a dataset of the config.

  Raises:
    ValueError: There is none.
  """
  node = cfg
  for name in path.split('.'):
    node = node.get(name) if isinstance(node, konfig.ConfigDict) else None
  if node is None:
    evals = cfg.get('evals') or {}
    names = ['train_ds', *(f'evals.{x}.ds' for x in evals)]
    raise ValueError(
        f'{_WHO}: the config has no dataset {path!r}. Set --dataset to one of'
        f' {names}.'
    )
  return node


def _lines(part: _parts.Part, counts: _counts.Counts) -> Iterator[str]:
  """Yields the lines of the counts."""
  task: Any = part.task
  yield f'{part.name}: {part.kind}, {type(task).__name__}'
  yield f'  rows       {counts.num_rows:,}'
  if counts.num_read < counts.num_rows:
    yield (
        f'  read       {counts.num_read:,}, evenly spread (--count=all reads all)'
    )
  if counts.num_dropped:
    yield f'  dropped    {_share(counts.num_dropped, counts)} by filters'
  malformed = counts.malformed
  stops = ' Training would stop.' if _stops(part, counts) else ''
  yield (
      f'  malformed  {_share(malformed.num_malformed, counts)}, and'
      f' max_malformed={task.max_malformed}.{stops}'
  )
  for reason, number in malformed.reasons.most_common():
    yield f'    {number:,} x {reason}'
  if not counts.lengths:
    return
  lengths = np.array(counts.lengths)
  yield (
      f'  tokens     {counts.num_tokens:,}, of which'
      f' {counts.num_trained / counts.num_tokens:.1%} are trained'
  )
  p50, p95 = (int(x) for x in np.percentile(lengths, (50, 95)))
  yield (
      f'  lengths    median {p50:,}, 95 % up to {p95:,}, longest'
      f' {lengths.max():,}'
  )
  if task.max_length is None:
    return
  if task.truncate:
    cut = f'{_share(counts.num_truncated, counts)}'
    yield f'  truncated  {cut} to max_length={task.max_length}'
  yield f'  filled     {_filled(part, lengths)}'


def _filled(part: _parts.Part, lengths: np.ndarray) -> str:
  """Returns how much of the batches is not padding."""
  task: Any = part.task
  # The last token of a sequence is a target only.
  sizes = np.minimum(lengths - 1, task.max_length)
  if not part.is_packed:
    share = sizes.sum() / (len(sizes) * task.max_length)
    return f'{share:.1%} of max_length={task.max_length}'
  bins = _first_fit.first_fit_decreasing(sizes, capacity=task.max_length)
  share = sizes.sum() / (len(bins) * task.max_length)
  return f'{share:.1%} of packed rows of {task.max_length} tokens'


def _share(number: int, counts: _counts.Counts) -> str:
  return f'{number:,} ({number / max(counts.num_read, 1):.2%})'


def _stops(part: _parts.Part, counts: _counts.Counts) -> bool:
  """Whether so many rows are malformed that training would stop."""
  limit = _malformed.allowed(part.task.max_malformed, counts.num_read)
  return counts.malformed.num_malformed > limit


def _malformed_lines(counts: _counts.Counts) -> Iterator[str]:
  for reason, number in counts.malformed.reasons.most_common():
    yield f'\n{number:,} x {reason}'
    for example in counts.malformed.examples[reason]:
      yield f'  {example}'


def _pictures(part: _parts.Part, counts: _counts.Counts) -> Iterator[str]:
  """Yields the output of `g4.data.show` for each example."""
  task: Any = part.task
  tokenizer = getattr(task, 'tokenizer', None)
  for example in counts.examples:
    names = ('input', 'target', 'loss_mask')
    arrays = _counts.sequences(task, example)
    yield _show.shown(
        dict(zip(names, arrays, strict=True)), tokenizer=tokenizer
    ).as_text(colour=_show.has_colour())
