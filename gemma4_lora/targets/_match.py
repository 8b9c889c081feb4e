"""Whether a string of `g4.targets` means a row of the table."""

from collections.abc import Sequence
import re

from gemma4_lora import _linears
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
)
# As Hugging Face nests the text tower, by class of the model.
_HF_PREFIXES = ('model.language_model.', 'model.', 'language_model.', '')


def matches(
    target: str, row: _linears.Linear, *, tower: str | None, regex: bool
) -> bool:
  """Whether a string means this row, dead or live.

  Args:
    target: A string of `g4.targets`.
    row: A row of the table.
    tower: Whose projections a bare name means; None for the text tower's.
    regex: Whether `target` is a regular expression on Hugging Face's names.
  """
  if regex:
    pattern = re.compile(target)
    return row.group != 'router' and any(
        pattern.fullmatch(name) for name in hf_names(row)
    )
  if target in KINDS or target == 'all-linear':
    return _is_of_kind(target, row, tower=tower)
  if target == row.name:
    return True
  if target == row.projection:
    return row.tower == (tower or 'text')
  if row.group == 'router':  # By its own name only.
    return target in hf_names(row) or target == row.hf_name.split('.', 2)[-1]
  if any(n == target or n.endswith(f'.{target}') for n in hf_names(row)):
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


def hf_names(row: _linears.Linear) -> list[str]:
  """Returns what Hugging Face may call the module of a row."""
  if row.tower != 'text':
    return [row.hf_name] if row.hf_name else []
  return [prefix + row.hf_name for prefix in _HF_PREFIXES]


def _is_of_kind(kind: str, row: _linears.Linear, *, tower: str | None) -> bool:
  """Whether a row is of a kind; kinds of the text tower mean `tower`'s."""
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
