"""Counts of the rows and tokens of a dataset."""

from collections.abc import Iterator
import dataclasses
from typing import Any

import numpy as np
import tqdm

from gemma4_lora.data import _malformed
from gemma4_lora.data import _row_task
from gemma4_lora.data import _text_task
from gemma4_lora.data.reports import _parts

# The limit up to which the length of a cut row is searched.
_LONGEST = 1 << 22


@dataclasses.dataclass(kw_only=True, eq=False)
class Counts:
  """Counts of one part of a dataset.

  Attributes:
    num_rows: How many rows it has.
    num_read: How many of them were read.
    num_dropped: How many a filter dropped.
    num_truncated: How many were cut.
    malformed: Counts those that are malformed.
    lengths: Tokens of each sequence, before it is cut.
    num_tokens: Tokens of all, after.
    num_trained: How many of them are trained.
    examples: The first examples, as many as are shown.
  """

  num_rows: int
  malformed: _malformed.Counter
  num_read: int = 0
  num_dropped: int = 0
  num_truncated: int = 0
  lengths: list[int] = dataclasses.field(default_factory=list)
  num_tokens: int = 0
  num_trained: int = 0
  examples: list[Any] = dataclasses.field(default_factory=list)


def count(part: _parts.Part, *, most: int | None, num_shown: int) -> Counts:
  """Reads rows of a part, and counts.

  Args:
    part: The part.
    most: How many rows to read, evenly spread; None for all.
    num_shown: How many examples to keep, and malformed rows of each reason.

  Raises:
    ValueError: The task is not set up right.
  """
  rows = part.rows()
  number = len(part.source)
  # No limit: they are counted here.
  task = dataclasses.replace(part.task, max_malformed=number + 1)
  counter = _malformed.Counter(
      name=type(task).__name__, limit=number + 1, num_examples=num_shown
  )
  task.__dict__['malformed'] = counter
  counts = Counts(num_rows=number, malformed=counter)
  indices = _spread(number, most)
  for i in tqdm.tqdm(indices, desc=part.name, leave=False, disable=None):
    row = rows[i]
    counts.num_read += 1
    if row is None:
      counts.num_dropped += 1
      continue
    examples = task.or_none(
        lambda row: list(_examples(task, row, is_packed=part.is_packed)), row
    )
    for example in examples or ():
      if len(counts.examples) < num_shown:
        counts.examples.append(example)
      _add(counts, task, row, example)
  return counts


def _spread(number: int, most: int | None) -> range | list[int]:
  if most is None or number <= most:
    return range(number)
  return [i * number // most for i in range(most)]


def _examples(
    task: _row_task.RowTask, row: Any, *, is_packed: bool
) -> Iterator[dict[str, Any]]:
  """Yields the examples of a row: several if packing splits it."""
  if is_packed and isinstance(task, _text_task.TextTask):
    for ids, weights in task.pieces(row):
      yield task.pad_fields(ids[:-1], ids[1:], weights[1:])
  else:
    yield task.fields(row)


def _add(counts: Counts, task: Any, row: Any, example: dict[str, Any]) -> None:
  tokens, targets, mask = sequences(task, example)
  lengths = _lengths(tokens, targets)
  counts.num_tokens += sum(lengths)
  counts.num_trained += int((mask > 0).sum())
  if task.truncate and max(lengths) > tokens.shape[1]:
    whole = _whole_lengths(task, row)
    counts.num_truncated += whole != lengths
    lengths = whole
  counts.lengths += lengths


def sequences(task: Any, example: dict[str, Any]) -> list[np.ndarray]:
  """Returns the input, the target and the mask of an example, `[N, L]` each.

  `ChatTask(sampling=True)` gives texts: they are tokenized, with loss on the
  response.
  """
  names = (task.out_input, task.out_target, task.out_target_mask)
  if task.out_target_mask in example:
    length = example[task.out_input].shape[-1]
    return [np.asarray(example[x]).reshape(-1, length) for x in names]
  prompt = task.tokenizer.encode(example[task.out_input], add_bos=True)
  response = task.tokenizer.encode(example[task.out_target])
  ids = np.array([*prompt, *response], np.int32)
  mask = np.arange(1, len(ids)) >= len(prompt)
  return [ids[None, :-1], ids[None, 1:], mask[None]]


def _lengths(tokens: np.ndarray, targets: np.ndarray) -> list[int]:
  """Returns how many tokens each sequence has, its last target among them."""
  used = (tokens != 0) | (targets != 0)
  length = tokens.shape[1] - used[:, ::-1].argmax(axis=1)
  return [int(n) + 1 for n in length * used.any(axis=1)]


def _whole_lengths(task: Any, row: Any) -> list[int]:
  """Returns the lengths of sequences that may have been cut."""
  length = task.max_length
  while True:
    length *= 4
    longer = dataclasses.replace(task, max_length=length)
    tokens, targets, _ = sequences(longer, longer.fields(row))
    lengths = _lengths(tokens, targets)
    if max(lengths) <= length or length > _LONGEST:
      return lengths
