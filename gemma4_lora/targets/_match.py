"""Whether a string of `g4.targets` means a row of the table."""

from collections.abc import Callable
from collections.abc import Sequence
import re
from typing import Any

from gemma4_lora.gemma4 import _hf_names
from gemma4_lora.gemma4 import _released
from gemma4_lora.gemma4 import _rows
from gemma4_lora.targets import _rule

# Kinds of the text tower that `'text'` stands for.
_TEXT = ('attention', 'mlp', 'per_layer_inputs')
KINDS = (
    'text',
    *_TEXT,
    'experts',
    'shared_expert',
    'vision',
    'audio',
    'multimodal_projections',
    # Not linears: see `_full`.
    'norms',
    'embeddings',
    'scalars',
)


def matches(
    target: str, row: _rows.Row, *, tower: str | None, regex: bool
) -> bool:
  """Whether a string means this row, dead or live.

  Args:
    target: A string of `g4.targets`.
    row: A row of the table.
    tower: The tower of bare names of projections. None: the text tower, if it
      has one of that name.
    regex: Whether `target` is a regular expression on Hugging Face's names.

  Raises:
    ValueError: It names some of Hugging Face's layers, but the weight holds all
      layers of its tower.
  """
  if regex:
    pattern = re.compile(target)
    return not row.is_router and _any_name(pattern.fullmatch, target, row)
  if target in KINDS or target == 'all-linear':
    return _is_of_kind(target, row, tower=tower)
  if target == row.name:
    return True
  if target == row.projection:
    if tower is None and target not in _released.shared_projections():
      return True
    return row.tower == (tower or 'text')
  if row.is_router:  # By its own name only.
    return target in _hf_modules(row)[0] or _below_layer(row) == target
  if _ends_name(target, row):
    return True
  pattern = _glob(target)
  return any(map(pattern.fullmatch, (row.name, row.path, row.module_path)))


def layer_numbers(
    layers: int | str | Sequence[int] | None, *, num_layers: int
) -> frozenset[int | None]:
  """Returns the layers that `Rule.layers` means.

  Args:
    layers: A number, several, a slice as a string, or None for all.
    num_layers: How many there are.

  Raises:
    ValueError: A number that no layer has.
  """
  if layers is None:
    return frozenset({None, *range(num_layers)})
  if isinstance(layers, str):
    return frozenset(range(num_layers)[_rule.parse_slice(layers)])
  numbers = [layers] if isinstance(layers, int) else layers
  for number in numbers:
    if not -num_layers <= number < num_layers:
      raise ValueError(
          f'layers={layers!r}: the model has {num_layers} layers, 0 to'
          f' {num_layers - 1}.'
      )
  return frozenset(number % num_layers for number in numbers)


def _below_layer(row: _rows.Row) -> str:
  """`router.proj` of `layers.0.router.proj`."""
  return row.hf_name.split('.', 2)[-1]


def _hf_modules(row: _rows.Row) -> list[list[str]]:
  """Hugging Face's names of a row's modules: one per layer if stacked."""
  prefixes = _hf_names.prefixes(row.tower)
  return [[prefix + name for prefix in prefixes] for name in row.hf_names]


def _ends_name(target: str, row: _rows.Row) -> bool:
  """Whether a string is a Hugging Face name of a row, or the end of one."""
  if isinstance(row, _rows.Leaf) and row.tower == 'audio' and '.' not in target:
    return False  # Two are a `norm` there, as is the text's last one.
  return _any_name(lambda n: f'.{n}'.endswith(f'.{target}'), target, row)


def _any_name(fits: Callable[[str], Any], target: str, row: _rows.Row) -> bool:
  """Whether a row is meant by Hugging Face's names: all its modules or none."""
  modules = _hf_modules(row)
  meant = [names for names in modules if any(map(fits, names))]
  if meant and len(meant) < len(modules):
    raise ValueError(
        f'{target!r} means {len(meant)} of the {len(modules)} layers of'
        f' {row.name}, as {meant[0][0]}. Gemma keeps the layers of the'
        f' {row.tower} tower in one weight: it is all of them or none.'
    )
  return bool(meant)


def _is_of_kind(kind: str, row: _rows.Row, *, tower: str | None) -> bool:
  """Whether a row belongs to a kind; text kinds mean those of `tower`."""
  if kind in ('text', 'all-linear'):
    return row.tower == 'text' and row.group in _TEXT
  if kind in ('vision', 'audio'):
    return row.tower == kind and row.group in (
        'attention',
        'mlp',
        'convolution',
    )
  if kind == 'shared_expert':
    return row.group == 'mlp' and '.mlp2.' in row.path
  if kind == 'multimodal_projections':
    return row.group == kind
  return row.group == kind and row.tower == (tower or 'text')


def _glob(target: str) -> re.Pattern[str]:
  """Dotted glob: `*` stays within a segment, `**` crosses segments."""
  parts = re.split(r'(\*\*|\*)', target)
  wildcards = {'**': '.*', '*': '[^.]*'}
  return re.compile(''.join(wildcards.get(p, re.escape(p)) for p in parts))
