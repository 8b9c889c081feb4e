"""What a model's LoRA adapts, as a table for people."""

from collections.abc import Sequence
import dataclasses
import html
import itertools
import math
from typing import Any

from flax import linen as nn
import jax

from gemma4_lora import _gemma4
from gemma4_lora import _linears
from gemma4_lora import targets
from gemma4_lora.nn import _lora

_COLUMNS = (
    'projection',
    'base weight',
    'in',
    'out',
    'rank',
    'parameters',
    'layers',
)
_NUMBERS = ('rank', 'parameters')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
  """Adapted projections that differ in nothing but their layer.

  Attributes:
    projection: `'q'`, `'gate'`, ...
    layers: Their layers; empty for what stands outside the layers.
    path: Path of the base weight, `layer_*.attn.q_einsum.w`, and the slot where
      the weight packs several projections.
    in_shape: Shape that the input is contracted over.
    out_shape: Shape that the output gains.
    rank: Of A and B.
    num_params: Entries of A and B, all layers together.
  """

  projection: str
  layers: tuple[int, ...]
  path: str
  in_shape: tuple[int, ...]
  out_shape: tuple[int, ...]
  rank: int
  num_params: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
  """What LoRA adapts. Prints as a table, and renders as one in a notebook.

  Attributes:
    groups: One a line of the table.
    num_projections: How many projections are adapted.
    trainable: Parameters of all A and B.
    total: Parameters of the model, LoRA included.
  """

  groups: tuple[Group, ...]
  num_projections: int
  trainable: int
  total: int

  @property
  def footer(self) -> str:
    """The last line: what is trained, of how much."""
    return (
        f'{self.num_projections} projections,'
        f' {self.trainable:,} trainable of {self.total:,} parameters'
        f' ({self.trainable / self.total:.2%})'
    )

  def __str__(self) -> str:
    rows = [_COLUMNS, *map(_cells, self.groups)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        '  '.join(map(_justify, row, widths, _COLUMNS)).rstrip() for row in rows
    ]
    lines.insert(1, '  '.join('-' * width for width in widths))
    return '\n'.join([*lines, self.footer])

  __repr__ = __str__

  def _repr_html_(self) -> str:
    def tr(cells: Sequence[str], tag: str) -> str:
      return (
          '<tr>'
          + ''.join(f'<{tag}>{html.escape(c)}</{tag}>' for c in cells)
          + '</tr>'
      )

    body = ''.join(tr(_cells(group), 'td') for group in self.groups)
    return (
        f'<table><thead>{tr(_COLUMNS, "th")}</thead><tbody>{body}</tbody>'
        f'</table><p>{html.escape(self.footer)}</p>'
    )


def summary(model: nn.Module) -> Summary:
  """Returns the table of adapted projections, without allocating the model.

  ```python
  print(g4.nn.summary(g4.nn.LoRA(rank=16, model=gm.nn.Gemma4_E2B())))
  ```

  Args:
    model: A `g4.nn.LoRA`.

  Raises:
    ValueError: `model` is not a `g4.nn.LoRA`.
  """
  if not isinstance(model, _lora.LoRA):
    raise ValueError(
        'g4.nn.summary(model) takes a g4.nn.LoRA. Got:'
        f' {type(model).__name__}'
    )
  adapted = model.adapted
  return Summary(
      groups=tuple(
          _group(list(group)) for group in _grouped(adapted, key=_group_key)
      ),
      num_projections=len(adapted),
      trainable=sum(linear.num_params for linear in adapted),
      total=sum(
          math.prod(x.shape)
          for x in jax.tree.leaves(_gemma4.abstract_params(model))
      ),
  )


def _grouped(adapted, *, key):
  """Groups by key, in the order in which keys first come up."""
  groups = {}
  for linear in adapted:
    groups.setdefault(key(linear), []).append(linear)
  return groups.values()


def _group_key(linear: targets.Adapted) -> Any:
  row = linear.row
  return (
      row.projection,
      _path(row),
      row.in_shape,
      row.out_shape,
      linear.rank,
  )


def _group(adapted: Sequence[targets.Adapted]) -> Group:
  first = adapted[0]
  return Group(
      projection=first.row.projection,
      layers=tuple(n for linear in adapted for n in linear.row.layers),
      path=_path(first.row),
      in_shape=first.row.in_shape,
      out_shape=first.row.out_shape,
      rank=first.rank,
      num_params=sum(linear.num_params for linear in adapted),
  )


def _path(row: _linears.Linear) -> str:
  """`layer_*.attn.kv_einsum.w[1]` for v."""
  path = row.starred(row.path)
  return path if row.slot is None else f'{path}[{row.slot}]'


def _cells(group: Group) -> tuple[str, ...]:
  """A group as the cells of a line."""
  return (
      group.projection,
      group.path,
      ' x '.join(map(str, group.in_shape)),
      ' x '.join(map(str, group.out_shape)),
      str(group.rank),
      f'{group.num_params:,}',
      _layers(group.layers),
  )


def _justify(cell: str, width: int, column: str) -> str:
  """Numbers to the right, words to the left."""
  return cell.rjust(width) if column in _NUMBERS else cell.ljust(width)


def _layers(layers: tuple[int, ...]) -> str:
  """`28: 0-3, 5-8, ...`: how many layers, and which."""
  if not layers:
    return '-'
  # Consecutive numbers keep their distance to their own index.
  runs = itertools.groupby(enumerate(layers), lambda pair: pair[1] - pair[0])
  spans = []
  for _, run in runs:
    numbers = [layer for _, layer in run]
    first, last = numbers[0], numbers[-1]
    spans.append(str(first) if first == last else f'{first}-{last}')
  return f'{len(layers)}: {", ".join(spans)}'
