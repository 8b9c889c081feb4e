"""How the parts of a base are held, for people: bits and bytes."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import html
import math

from gemma4_lora import _trees
from gemma4_lora.gemma4 import _leaves
from gemma4_lora.gemma4 import _linears
from gemma4_lora.gemma4 import _names
from gemma4_lora.gemma4 import _rows
from gemma4_lora.gemma4 import _upstream
from gemma4_lora.nn import _lora
from gemma4_lora.quant import _format

_COLUMNS = ('base', 'parameters', 'bits', 'bytes', 'held as')
_NUMBERS = ('parameters', 'bits', 'bytes')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Held:
  """A part of the base.

  Attributes:
    name: `'attention'`, `'mlp'`, `'experts'`, `'embeddings'`, `'per-layer
      tables'`, ...; `'vision'`, `'audio'` for all of a tower.
    num_params: Entries of its weights.
    num_bits: Bits that they take: those of codes and scales if quantised.
    formats: How they are held: `'int4, groups of 32'`, `'bfloat16'`.
  """

  name: str
  num_params: int
  num_bits: int
  formats: tuple[str, ...]

  @property
  def bits(self) -> float:
    """Bits per weight."""
    return self.num_bits / self.num_params


def held(model: _lora.LoRA) -> tuple[Held, ...]:
  """Returns all parts of a model's base, the largest first."""
  encodings = model.quantized
  config = model.model.config
  rows = {
      row.path: row
      for row in (*_linears.linears(config), *_leaves.leaves(config))
  }
  parts: dict[str, list[tuple[int, int, str]]] = {}
  for path, x in _trees.dotted(_upstream.abstract_params(model.model)).items():
    num = math.prod(x.shape)
    encoding = encodings.get(path)
    if encoding is None:
      entry = num, _format.num_bits(x), str(x.dtype)
    else:
      bits = round(num * encoding.bits_per_entry(x.shape))
      entry = num, bits, encoding.text
    parts.setdefault(_name(path, rows), []).append(entry)
  found = [
      Held(
          name=name,
          num_params=sum(num for num, _, _ in entries),
          num_bits=sum(bits for _, bits, _ in entries),
          formats=tuple(dict.fromkeys(text for _, _, text in entries)),
      )
      for name, entries in parts.items()
  ]
  return tuple(sorted(found, key=lambda x: -x.num_params))


def as_lines(parts: Sequence[Held]) -> list[str]:
  """Returns the lines of the table, and its sum."""
  cells = [_COLUMNS, *_cells(parts)]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  lines = [
      '  '.join(
          c.rjust(w) if name in _NUMBERS else c.ljust(w)
          for c, w, name in zip(row, widths, _COLUMNS, strict=True)
      ).rstrip()
      for row in cells
  ]
  lines.insert(1, '  '.join('-' * width for width in widths))
  return [*lines, _total(parts)]


def as_html(parts: Sequence[Held]) -> str:
  """Returns the same for a notebook."""

  def tr(cells: Sequence[str], tag: str) -> str:
    return (
        f'<tr>{"".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells)}</tr>'
    )

  body = ''.join(tr(row, 'td') for row in _cells(parts))
  return (
      f'<table><thead>{tr(_COLUMNS, "th")}</thead><tbody>{body}</tbody></table>'
      f'<p>{html.escape(_total(parts))}</p>'
  )


def _cells(parts: Sequence[Held]) -> list[tuple[str, ...]]:
  unit = _unit(max(x.num_bits for x in parts) / 8)  # One for the column.
  return [
      (
          x.name,
          f'{x.num_params:,}',
          f'{x.bits:.2f}'.rstrip('0').rstrip('.'),
          _in_unit(x.num_bits / 8, unit),
          '; '.join(x.formats),
      )
      for x in parts
  ]


def _total(parts: Sequence[Held]) -> str:
  """`base: 17.27 GB, 28.1% of 61.40 GB in bfloat16`."""
  num_bytes = sum(x.num_bits for x in parts) / 8
  in_bfloat16 = 2 * sum(x.num_params for x in parts)
  return (
      f'base: {_bytes(num_bytes)}, {num_bytes / in_bfloat16:.1%} of'
      f' {_bytes(in_bfloat16)} in bfloat16'
  )


def _bytes(num: float) -> str:
  """`17.27 GB`, of 10**9 bytes; `105.30 MB`, `20.10 kB` where it is less."""
  return _in_unit(num, _unit(num))


def _unit(largest: float) -> tuple[str, float]:
  for name, size in (('GB', 1e9), ('MB', 1e6)):
    if largest >= size:
      return name, size
  return 'kB', 1e3


def _in_unit(num: float, unit: tuple[str, float]) -> str:
  name, size = unit
  value = num / size
  return f'{value:,.2f} {name}' if value >= 0.005 else f'<0.01 {name}'


def _name(path: str, rows: Mapping[str, _rows.Row]) -> str:
  """Returns the part of the base that a leaf belongs to."""
  row = rows.get(path)
  if path == _names.PER_LAYER_EMBEDDINGS:
    return 'per-layer tables'
  if row is not None and row.tower == 'text':
    return row.group.replace('_', ' ')
  for tower in ('vision', 'audio'):
    if path.startswith(f'{tower}_encoder.'):
      return tower
  return row.group.replace('_', ' ') if row is not None else 'others'
