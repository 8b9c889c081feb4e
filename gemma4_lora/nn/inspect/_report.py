"""What `g4.nn.check` found, for people."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import html

from gemma4_lora.nn.inspect import _effect

_COLUMNS = ('projection', 'layers', '‖B·A‖/‖W‖ least', 'most', 'without effect')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """What `g4.nn.check` found: a table and a verdict, in a notebook as HTML.

  Attributes:
    rows: Each adapted projection, and each part trained in full.
    num_projections: How many of both the model has.
    logits: Root mean square of differences, relative to that of the logits:
      `base_vs_adapter`, `adapter_vs_fused`, `base_vs_fused`; and the share of
      `changed_predictions`. Empty if they were not compared.
    problems: Problems, and what to do about each.
    notes: Notes that need no action.
  """

  rows: tuple[_effect.Effect, ...]
  num_projections: int
  logits: Mapping[str, float]
  problems: tuple[str, ...]
  notes: tuple[str, ...]

  @property
  def ok(self) -> bool:
    """Whether nothing is wrong."""
    return not self.problems

  def __str__(self) -> str:
    lines = [*_table(self.rows), ''] if self.rows else []
    lines += self._logits_lines()
    lines += [f'note: {text}' for text in self.notes]
    lines += [f'PROBLEM: {text}' for text in self.problems]
    return '\n'.join([*lines, self._verdict])

  __repr__ = __str__

  def _repr_html_(self) -> str:
    """The verdict first, as a notebook shows the table's first lines alone."""
    items = [
        *(f'<b>PROBLEM</b>: {html.escape(text)}' for text in self.problems),
        *map(html.escape, self._logits_lines()),
        *(html.escape(f'note: {text}') for text in self.notes),
    ]
    listed = ''.join(f'<li>{item}</li>' for item in items)
    head, *body = _cells(self.rows)
    table = _tr(head, 'th') + ''.join(_tr(row, 'td') for row in body)
    return f'<p><b>{html.escape(self._verdict)}</b></p><ul>{listed}</ul>' + (
        f'<table>{table}</table>' if self.rows else ''
    )

  @property
  def _verdict(self) -> str:
    if not self.ok:
      return f'NOT OK: {len(self.problems)} problems.'
    count = f'all {self.num_projections} projections are there'
    effect = '' if self.logits else ' (logits not compared)'
    return f'OK: {count}, and change the model{effect}.'

  def _logits_lines(self) -> Iterator[str]:
    if self.logits:
      yield (
          'logits: LoRA changes them by'
          f' {_percent(self.logits["base_vs_adapter"])} of their size, and fusing'
          f' it by {_percent(self.logits["adapter_vs_fused"])};'
          f' {self.logits["changed_predictions"]:.0%} of predictions change'
      )


def some(names: list[str], most: int = 3) -> str:
  """Returns the first few of many, for messages."""
  more = f' and {len(names) - most} more' if len(names) > most else ''
  return ', '.join(names[:most]) + more


def _percent(share: float) -> str:
  """`140%`, `4.7%`, `0.032%`, `4e-05%`."""
  percent = 100 * share
  return f'{percent:.0f}%' if percent >= 10 else f'{percent:.2g}%'


def _tr(cells: Sequence[str], tag: str) -> str:
  return (
      f'<tr>{"".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells)}</tr>'
  )


def _cells(rows: Sequence[_effect.Effect]) -> list[tuple[str, ...]]:
  """Returns the table, one line for all layers of a projection."""
  kinds: dict[str, list[_effect.Effect]] = {}
  for row in rows:
    kinds.setdefault(row.kind, []).append(row)
  cells: list[tuple[str, ...]] = [_COLUMNS]
  for kind, same in kinds.items():
    sizes = [x.norm if x.relative is None else x.relative for x in same]
    zero = sum(x.num_zero for x in same)
    matrices = sum(x.num_matrices for x in same)
    cells.append(
        (
            kind,
            str(len(same)),
            f'{min(sizes):.2e}',
            f'{max(sizes):.2e}',
            f'{zero} of {matrices}' if zero else '',
        )
    )
  return cells


def _table(rows: Sequence[_effect.Effect]) -> Iterator[str]:
  """Yields the lines of the table."""
  cells = _cells(rows)
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  for i, line in enumerate(cells):
    text = '  '.join(c.ljust(w) for c, w in zip(line, widths, strict=True))
    yield text.rstrip()
    if i == 0:
      yield '  '.join('-' * width for width in widths)
