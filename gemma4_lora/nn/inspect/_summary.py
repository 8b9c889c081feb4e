"""What a model's LoRA adapts, as a table for people."""

from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import html
import itertools
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from gemma4_lora.gemma4 import _linears
from gemma4_lora.gemma4 import _rows
from gemma4_lora.gemma4 import _upstream
from gemma4_lora.nn import _lora
from gemma4_lora.nn.inspect import _held
from gemma4_lora.targets import _full
from gemma4_lora.targets import _resolve

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

_Trained = _resolve.Adapted | _full.Saved


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
  """Trained parts that differ only in their layer.

  Adapted projections, or parts that `modules_to_save` trains in full.

  Attributes:
    projection: `'q'`, `'gate'`, ...; `'vision q'` in another tower than text.
    layers: Their layers; empty for parts outside the layers.
    path: Path of the base weight, `layer_*.attn.q_einsum.w`, and the slot where
      the weight packs several projections.
    in_shape: Shape that the input is contracted over; empty if it is not a
      linear.
    out_shape: Shape that the output gains, or the shape of a part that is not a
      linear.
    rank: Rank of A and B; None for parts trained in full.
    num_params: Entries of its LoRA leaves, or of the copies; all layers together.
    lora_paths: Paths of the `{'a': ..., 'b': ...}` of each, or of the copies.
  """

  projection: str
  layers: tuple[int, ...]
  path: str
  in_shape: tuple[int, ...]
  out_shape: tuple[int, ...]
  rank: int | None
  num_params: int
  lora_paths: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeftOut:
  """Linears that are not adapted, and why.

  Attributes:
    reason: Why.
    counts: How many, by projection (`'vision q'` in another tower than text).
  """

  reason: str
  counts: Mapping[str, int]

  def __str__(self) -> str:
    counts = ', '.join(f'{n} {name}' for name, n in self.counts.items())
    return f'{counts}: {self.reason}'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
  """What LoRA adapts. Prints as a table, and renders as one in a notebook.

  Attributes:
    groups: One for each line of the table.
    left_out: What is not adapted.
    num_projections: How many projections are adapted, each layer's counted.
    num_saved: How many parts of the base are trained in full.
    trainable: Parameters of all LoRA leaves, and of those parts.
    total: Parameters of the model, LoRA included, without scales of quantised
      parts.
    dtype: The dtype of A, B and those parts.
    in_float32: Parameters in leaves that a variant has beside A and B, by their
      kind. These leaves are always float32.
    base: How each part of a quantised base is held; empty without `quantize=`.
  """

  groups: tuple[Group, ...]
  left_out: tuple[LeftOut, ...]
  num_projections: int
  num_saved: int
  trainable: int
  total: int
  dtype: jnp.dtype
  in_float32: Mapping[str, int] = dataclasses.field(default_factory=dict)
  base: tuple[_held.Held, ...] = ()

  @property
  def num_magnitudes(self) -> int:
    """The former name of the sum of `in_float32`: magnitudes of DoRA."""
    return sum(self.in_float32.values())

  @property
  def num_bytes(self) -> int:
    """Bytes of all that is trained."""
    in_float32 = sum(self.in_float32.values())
    return (self.trainable - in_float32) * self.dtype.itemsize + 4 * in_float32

  @property
  def adam_bytes(self) -> int:
    """Bytes of Adam's two moments of it, in the same dtypes."""
    return 2 * self.num_bytes

  @property
  def footer(self) -> tuple[str, ...]:
    """The lines below the table."""
    saved = f' and {self.num_saved} parts in full' if self.num_saved else ''
    dtype = str(self.dtype)
    if self.dtype != jnp.float32:
      for what, count in self.in_float32.items():
        dtype += f' ({count:,} {what} in float32)'
    return (
        f'{self.num_projections} projections{saved},'
        f' {self.trainable:,} trainable of {self.total:,} parameters'
        f' ({self.trainable / self.total:.2%})',
        f'{_megabytes(self.num_bytes)} in {dtype}, and'
        f' {_megabytes(self.adam_bytes)} of Adam state',
        *(f'left out: {left_out}' for left_out in self.left_out),
    )

  def __str__(self) -> str:
    rows = [_COLUMNS, *map(_cells, self.groups)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        '  '.join(map(_justify, row, widths, _COLUMNS)).rstrip() for row in rows
    ]
    lines.insert(1, '  '.join('-' * width for width in widths))
    lines += self.footer
    if self.base:
      lines += ['', *_held.as_lines(self.base)]
    return '\n'.join(lines)

  __repr__ = __str__

  def _repr_html_(self) -> str:
    """A table whose rows open to the paths of the LoRA leaves."""

    def tr(cells: Sequence[str], tag: str) -> str:
      return f'<tr>{"".join(f"<{tag}>{c}</{tag}>" for c in cells)}</tr>'

    def opening(group: Group) -> list[str]:
      first, *rest = map(html.escape, _cells(group))
      paths = '<br>'.join(map(html.escape, group.lora_paths))
      details = f'<details><summary>{first}</summary>{paths}</details>'
      return [details, *rest]

    body = ''.join(tr(opening(group), 'td') for group in self.groups)
    footer = '<br>'.join(map(html.escape, self.footer))
    base = _held.as_html(self.base) if self.base else ''
    return (
        f'<table><thead>{tr(_COLUMNS, "th")}</thead><tbody>{body}</tbody>'
        f'</table><p>{footer}</p>{base}'
    )


def summary(model: nn.Module) -> Summary:
  """Returns the table of adapted projections, without allocating the model.

  ```python
  print(g4.nn.summary(g4.nn.LoRA(rank=16, model=gm.nn.Gemma4_E2B())))
  ```

  From a shell, for a config: `python -m gemma4_lora summary --cfg=...`.

  Args:
    model: A `g4.nn.LoRA`.

  Raises:
    ValueError: `model` is not a `g4.nn.LoRA`.
  """
  if not isinstance(model, _lora.LoRA):
    raise ValueError(
        f'g4.nn.summary(model) takes a g4.nn.LoRA. Got: {type(model).__name__}'
    )
  adapted, saved = model.adapted, model.saved
  trained = (*adapted, *saved)
  return Summary(
      groups=tuple(
          _group(list(group)) for group in _grouped(trained, key=_group_key)
      ),
      left_out=_left_out(
          _linears.linears(model.config), {x.row.name for x in trained}
      ),
      num_projections=sum(len(linear.row.hf_names) for linear in adapted),
      num_saved=len(saved),
      trainable=sum(x.num_params for x in trained),
      total=sum(
          math.prod(x.shape)
          for x in jax.tree.leaves(
              # Scales are not counted as parameters.
              _upstream.abstract_params(model.clone(quantize=None))
          )
      ),
      dtype=jnp.dtype(model.dtype),
      in_float32={
          f'{leaf.plural} of {model.variant.name}': sum(
              math.prod(x.shapes[leaf.name]) for x in adapted
          )
          for leaf in model.variant.own
      },
      base=_held.held(model) if model.quantize else (),
  )


def _left_out(
    rows: Sequence[_linears.Linear], adapted: Collection[str]
) -> tuple[LeftOut, ...]:
  """Returns what is not adapted, by reason."""
  counts: dict[str, dict[str, int]] = {}
  for row in rows:
    if row.name in adapted:
      continue
    if not row.live:
      reason = 'the model never uses them (KV-shared layers)'
    elif row.is_router:
      reason = "chosen only by its own name, targets=['router']"
    else:
      reason = 'not chosen by targets='
    name = _name(row)
    by_name = counts.setdefault(reason, {})
    # A stacked weight counts as its layers, as in other towers.
    by_name[name] = by_name.get(name, 0) + len(row.hf_names)
  return tuple(LeftOut(reason=k, counts=v) for k, v in counts.items())


def _name(row: _rows.Row) -> str:
  """`q`, and `vision q` in another tower than text."""
  is_text = row.tower == 'text'
  return row.projection if is_text else f'{row.tower} {row.projection}'


def _megabytes(num_bytes: int) -> str:
  """`105.3 MB`, of 10**6 bytes."""
  return f'{num_bytes / 1e6:,.1f} MB'


def _grouped(trained, *, key):
  """Groups by key, in the order in which keys first come up."""
  groups = {}
  for part in trained:
    groups.setdefault(key(part), []).append(part)
  return groups.values()


def _group_key(trained: _Trained) -> Any:
  row = trained.row
  return row.projection, _path(row), *_shapes(trained), _rank(trained)


def _group(trained: Sequence[_Trained]) -> Group:
  first = trained[0]
  in_shape, out_shape = _shapes(first)
  return Group(
      projection=_name(first.row),
      layers=tuple(n for x in trained for n in x.row.layers),
      path=_path(first.row),
      in_shape=in_shape,
      out_shape=out_shape,
      rank=_rank(first),
      num_params=sum(x.num_params for x in trained),
      lora_paths=tuple(
          x.path if isinstance(x, _full.Saved) else x.row.lora_path
          for x in trained
      ),
  )


def _shapes(trained: _Trained) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """Returns input and output shapes."""
  row = trained.row
  if isinstance(row, _linears.Linear):
    return row.in_shape, row.out_shape
  return (), row.shape


def _rank(trained: _Trained) -> int | None:
  return trained.rank if isinstance(trained, _resolve.Adapted) else None


def _path(row: _rows.Row) -> str:
  """`layer_*.attn.kv_einsum.w[1]` for v, `....w[:, 1]` for up of experts."""
  path = row.starred(row.path)
  if row.slot_axis is None:
    return path
  return f'{path}[{":, " * row.slot_axis}{row.slot}]'


def _cells(group: Group) -> tuple[str, ...]:
  """Returns a group as the cells of a line."""
  return (
      group.projection,
      group.path,
      ' x '.join(map(str, group.in_shape)) or '-',
      ' x '.join(map(str, group.out_shape)),
      'full' if group.rank is None else str(group.rank),
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
