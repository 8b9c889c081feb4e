"""What `g4.nn.check` found, for people."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses

from gemma4_lora.nn.inspect import _effect

_COLUMNS = ('projection', 'layers', '‖B·A‖/‖W‖ least', 'most', 'without effect')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """What `g4.nn.check` found. Prints as a table and a verdict.

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
    if self.ok:
      count = f'all {self.num_projections} projections are there'
      effect = '' if self.logits else ' (logits not compared)'
      lines.append(f'OK: {count}, and change the model{effect}.')
    else:
      lines.append(f'NOT OK: {len(self.problems)} problems.')
    return '\n'.join(lines)

  __repr__ = __str__

  def _logits_lines(self) -> Iterator[str]:
    if self.logits:
      yield (
          'logits, of their size: base and LoRA'
          f' {self.logits["base_vs_adapter"]:.2g} apart, LoRA and fused'
          f' {self.logits["adapter_vs_fused"]:.2g};'
          f' {self.logits["changed_predictions"]:.0%} of predictions change'
      )


def some(names: list[str], most: int = 3) -> str:
  """Returns the first few of many, for messages."""
  more = f' and {len(names) - most} more' if len(names) > most else ''
  return ', '.join(names[:most]) + more


def _table(rows: Sequence[_effect.Effect]) -> Iterator[str]:
  """Yields the lines of the table, one for all layers of a projection."""
  kinds: dict[str, list[_effect.Effect]] = {}
  for row in rows:
    kinds.setdefault(row.kind, []).append(row)
  cells = [_COLUMNS]
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
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  for i, line in enumerate(cells):
    text = '  '.join(c.ljust(w) for c, w in zip(line, widths, strict=True))
    yield text.rstrip()
    if i == 0:
      yield '  '.join('-' * width for width in widths)
