"""Finds the leaves of the base that each format holds."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools

from gemma4_lora.gemma4 import _leaves
from gemma4_lora.gemma4 import _linears
from gemma4_lora.gemma4 import _rows
from gemma4_lora.gemma4 import _upstream
from gemma4_lora.quant import _format
from gemma4_lora.targets import _resolve
from gemma4_lora.targets import _rule

_ARGUMENT = _format.ARGUMENT


@functools.lru_cache(maxsize=64)
def resolve(
    formats: tuple[_format.Format, ...], config: _upstream.TransformerConfig
) -> Mapping[str, _format.Encoding]:
  """Returns the encoding of each quantised leaf, by its dotted path.

  Args:
    formats: The first that selects a leaf decides.
    config: The model's config.

  Raises:
    ValueError: A format selects nothing, nothing that can be quantised, only
      leaves of earlier formats, or a part of a leaf; or its groups do not
      divide a leaf.
  """
  rows = _all_rows(config)
  encodings: dict[str, _format.Encoding] = {}
  for format_ in formats:
    chosen = _chosen(format_, rows)
    new = [row for row in chosen if row.path not in encodings]
    if not new:
      raise ValueError(
          f'{_ARGUMENT}={format_!r} selects only what an earlier format took:'
          f' {chosen[0].name}. The first that selects a part decides: put the'
          ' narrower one first, or drop this one.'
      )
    for row in new:
      encodings[row.path] = format_.encoding(
          row.shape, _shared_axes(row), name=row.name
      )
  return encodings


def _all_rows(config: _upstream.TransformerConfig) -> list[_rows.Row]:
  """Returns the rows that can be quantised, unused keys and values included."""
  tables = [x for x in _leaves.leaves(config) if x.is_table]
  linears = [x for x in _linears.linears(config) if not x.is_router]
  return [dataclasses.replace(row, live=True) for row in (*tables, *linears)]


def _chosen(
    format_: _format.Format, rows: Sequence[_rows.Row]
) -> list[_rows.Row]:
  """Returns the rows of a format, one or more for each leaf."""
  select = format_.select
  if select == _format.ALL:
    return [row for row in rows if not row.is_selected_by_name_only]
  rules = _rule.normalize(select, argument=_ARGUMENT)
  chosen: dict[str, _rows.Row] = {}
  for rule in rules:
    _rule.check_no_settings(rule, argument=_ARGUMENT, what='what is quantised')
    for row in _resolve.rows_of(rule, rows, argument=_ARGUMENT):
      chosen[row.name] = row
  for row in rows:
    if row.name in chosen or row.slot is None:
      continue
    others = [x for x in chosen.values() if x.path == row.path]
    if others:
      raise ValueError(
          f'{_ARGUMENT}={format_!r} selects {others[0].name} and not'
          f' {row.name}: gemma keeps both in one weight, {row.path}. Select'
          f' {row.projection!r} too.'
      )
  return list(chosen.values())


def _shared_axes(row: _rows.Row) -> tuple[int, ...]:
  """Returns the axes along which weights may share a scale."""
  if isinstance(row, _linears.Linear):
    return row.in_axes
  return (len(row.shape) - 1,)
