"""From ranks and alphas by row to rules that a person can read."""

import collections
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from gemma4_lora.gemma4 import _linears
from gemma4_lora.targets import _match
from gemma4_lora.targets import _resolve
from gemma4_lora.targets import _rule

Settings = tuple[int, float]


def rules(
    settings: Mapping[str, Settings], rows: Sequence[_linears.Linear]
) -> tuple[int, float, list[_rule.Rule]]:
  """Returns rules that adapt some rows, with the rank and alpha of each.

  Args:
    settings: Rank and alpha by name of row; at least one.
    rows: The table.

  Returns:
    Rank and alpha of most rows, and rules. Rules for other rows have their own
    rank and alpha. No two rules take the same row.
  """
  counts = collections.Counter(settings.values())
  default, _ = counts.most_common(1)[0]
  written = []
  for group, _ in counts.most_common():
    names = {name for name, value in settings.items() if value == group}
    own = {} if group == default else {'rank': group[0], 'alpha': group[1]}
    written += _cover(names, rows, own)
  return *default, written


def _cover(
    names: set[str],
    rows: Sequence[_linears.Linear],
    settings: Mapping[str, Any],
) -> Iterator[_rule.Rule]:
  """Yields rules that take these rows: by kind, by projection, by layer."""
  left = dict.fromkeys(row.name for row in rows if row.name in names)
  selects = {}  # By the tower that the rule names.
  for select, tower in _candidates(rows):
    taken = _taken(_rule.Rule(select, tower=tower), rows)
    if taken and taken <= left.keys():
      selects.setdefault(tower, []).append(select)
      left = {name: None for name in left if name not in taken}
  for tower, several in selects.items():
    yield _rule.Rule(_one_or_all(several), tower=tower, **settings)
  yield from _by_layer([r for r in rows if r.name in left], settings)


def _candidates(
    rows: Sequence[_linears.Linear],
) -> Iterator[tuple[str, Any]]:
  """Yields rows that one rule can select, and their tower; widest first."""
  for kind in _match.KINDS:
    yield kind, None
  for tower, projection in dict.fromkeys((r.tower, r.projection) for r in rows):
    yield projection, None if tower == 'text' else tower


def _taken(rule: _rule.Rule, rows: Sequence[_linears.Linear]) -> frozenset[str]:
  """Returns the names of the rows that a rule takes."""
  try:
    adapted = _resolve.resolve([rule], rows, rank=1)
  except ValueError:  # None.
    return frozenset()
  return frozenset(linear.row.name for linear in adapted)


def _by_layer(
    left: Iterable[_linears.Linear],
    settings: Mapping[str, Any],
) -> Iterator[_rule.Rule]:
  """Yields rules for projections in some layers; other rows by their names."""
  layers = {}
  names = []
  for row in left:
    if row.tower == 'text' and row.layer is not None:
      layers.setdefault(row.projection, []).append(row.layer)
    else:
      names.append(row.name)
  projections = {}
  for projection, numbers in layers.items():
    projections.setdefault(tuple(numbers), []).append(projection)
  for numbers, several in projections.items():
    yield _rule.Rule(_one_or_all(several), layers=_layers(numbers), **settings)
  if names:
    yield _rule.Rule(_one_or_all(names), **settings)


def _layers(numbers: Sequence[int]) -> int | str | Sequence[int]:
  """Writes several layers in a row as a slice."""
  if len(numbers) == 1:
    return numbers[0]
  if list(numbers) == list(range(numbers[0], numbers[-1] + 1)):
    return f'{numbers[0]}:{numbers[-1] + 1}'
  return tuple(numbers)


def _one_or_all(values: Sequence[str]) -> str | Sequence[str]:
  return values[0] if len(values) == 1 else tuple(values)
