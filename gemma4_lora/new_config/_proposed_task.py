"""Finds the task that reads a user's rows, by trying each on the first rows."""

from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from gemma4_lora import data
from gemma4_lora import testing
from gemma4_lora.data.layouts import _layouts

# Columns of pairs of texts, as datasets on the Hub name them.
_PROMPTS = ('prompt', 'question', 'instruction', 'input', 'query', 'source')
_RESPONSES = ('response', 'answer', 'completion', 'output', 'target')
_TEXTS = ('text', 'content')
_SYSTEMS = ('system', 'system_prompt')

_NUM_ROWS = 200  # Rows that are tried.
_LONG = 2**17  # More tokens than a row has.


@dataclasses.dataclass(frozen=True)
class Proposal:
  """A task for some rows.

  Attributes:
    cls: Its name in `g4.data`.
    arguments: What differs from its defaults.
    keep: The columns that it reads.
    num_read: Number of rows that it reads.
    reason: Why it cannot read the first of the other rows.
    lengths: Characters that it reads of each row.
  """

  cls: str
  arguments: Mapping[str, Any]
  keep: tuple[str, ...]
  num_read: int
  reason: str | None
  lengths: tuple[int, ...]


def propose(rows: Sequence[Any], *, preference: bool) -> Proposal:
  """Returns the task that reads most rows, or more columns of as many rows.

  Args:
    rows: The user's rows.
    preference: Whether they are pairs of answers, for DPO.

  Raises:
    ValueError: No task reads any row.
  """
  rows = [rows[i] for i in range(min(len(rows), _NUM_ROWS))]
  columns = list(
      dict.fromkeys(
          key for row in rows if isinstance(row, Mapping) for key in row
      )
  )
  if not columns:
    raise ValueError(f'none of the first {len(rows)} rows is a JSON object.')
  candidates = _pairs(columns) if preference else _conversations(columns, rows)
  tried = [_try(rows, *candidate, columns=columns) for candidate in candidates]
  best = max(tried, key=lambda x: (x.num_read, len(x.keep)), default=None)
  if best is None or not best.num_read:
    reasons = ''.join(
        f' g4.data.{x.cls}({_written(x.arguments)}): {x.reason}' for x in tried
    )
    raise ValueError(
        f'no task of g4.data reads these rows, which have the columns {columns}.'
        f'{reasons}'
    )
  return best


def _conversations(
    columns: Collection[str], rows: Sequence[Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
  more = {
      argument: name
      for argument, names in (('in_system', _SYSTEMS), ('in_tools', ('tools',)))
      for name in names
      if name in columns
  }
  for prompt in (x for x in _PROMPTS if x in columns):
    for response in (x for x in _RESPONSES if x in columns):
      if prompt != response:
        yield 'ChatTask', dict(in_prompt=prompt, in_response=response, **more)
  for name, layout in _LAYOUTS_OF_MESSAGES.items():
    for column in columns:
      if column == layout.in_messages:
        yield 'ChatTask', dict(layout=name, **more)
      elif _has_messages(rows, column):
        yield 'ChatTask', dict(layout=name, in_messages=column, **more)
  if {'instruction', 'output'} <= {*columns}:
    yield 'ChatTask', dict(layout='alpaca')
  for column in (x for x in _TEXTS if x in columns):
    yield 'TextTask', dict(in_text=column)


def _pairs(columns: Collection[str]) -> Iterator[tuple[str, dict[str, Any]]]:
  names = dict(in_chosen='chosen', in_rejected='rejected')
  if not {*names.values()} <= {*columns}:
    raise ValueError(
        'DPO needs the columns chosen and rejected. There are:'
        f' {[*columns]}.'
    )
  for prompt in (x for x in _PROMPTS if x in columns):
    yield 'PreferenceTask', dict(in_prompt=prompt)
    for name in _LAYOUTS_OF_MESSAGES:
      yield 'PreferenceTask', dict(layout=name, in_prompt=prompt)
  for name in _LAYOUTS_OF_MESSAGES:
    yield 'PreferenceTask', dict(layout=name, in_prompt=None)


_LAYOUTS_OF_MESSAGES = {
    name: layout for name, layout in _layouts.LAYOUTS.items() if layout.is_chat
}


def _has_messages(rows: Sequence[Any], column: str) -> bool:
  value = rows[0].get(column) if isinstance(rows[0], Mapping) else None
  return isinstance(value, (list, tuple)) and all(
      isinstance(x, Mapping) for x in value
  )


def _try(
    rows: Sequence[Any],
    cls: str,
    arguments: Mapping[str, Any],
    *,
    columns: Collection[str],
) -> Proposal:
  """Reads the rows."""
  task = getattr(data, cls)(
      tokenizer=testing.Gemma4Tokenizer(),
      max_length=_LONG,
      max_malformed=len(rows),
      **arguments,
  )
  read, reason, lengths = 0, None, []
  for row in rows:
    try:
      task.fields(row)
    except Exception as e:  # As `RowTask.map` counts them.
      reason = reason or ' '.join(str(e).split())
      continue
    read += 1
    lengths.append(_characters(row, task))
  default = type(task).__dataclass_fields__
  return Proposal(
      cls=cls,
      arguments={k: v for k, v in arguments.items() if v != default[k].default},
      keep=tuple(x for x in columns if x in task._in_keys),
      num_read=read,
      reason=reason,
      lengths=tuple(lengths),
  )


def _characters(row: Any, task: Any) -> int:
  return sum(len(str(row.get(key, ''))) for key in task._in_keys)


def _written(arguments: Mapping[str, Any]) -> str:
  return ', '.join(f'{k}={v!r}' for k, v in arguments.items())


def max_length(lengths: Sequence[int]) -> int:
  """Returns a length in tokens for most of the rows.

  Args:
    lengths: Characters of each. A token of Gemma 4 has about four in English,
      and fewer elsewhere: three are assumed.
  """
  tokens = np.percentile(lengths, 99) / 3
  return int(np.clip(2 ** np.ceil(np.log2(max(tokens, 1))), 128, 8192))
