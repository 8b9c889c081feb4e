"""Readable regular expressions for exactly some modules."""

from collections.abc import Iterable
from collections.abc import Sequence
import re

# The number of an expert, in an escaped name.
_EXPERT = re.compile(r'(experts\\\.)\d+$')


def regex(names: Iterable[str]) -> str:
  r"""Returns an expression that fits only these names.

  ```python
  regex(['model.layers.0.mlp.up_proj', 'model.layers.2.mlp.up_proj', …]) == (
      r'model\.layers\.(0|2)\.mlp\.(up_proj|down_proj)'
  )
  ```

  The names must have all experts of a layer, or none.

  Args:
    names: Names of modules or parameters.
  """
  # {(before, behind): layers}, then {(before, layers, parent): last names}.
  layers: dict[tuple[str, str], list[str]] = {}
  plain = []
  for name in names:
    before, found, rest = name.partition('.layers.')
    if not found:
      plain.append(re.escape(name))
      continue
    layer, _, behind = rest.partition('.')
    numbers = layers.setdefault((before, behind), [])
    if layer not in numbers:
      numbers.append(layer)
  grouped: dict[tuple[str, tuple[str, ...], str], list[str]] = {}
  for (before, behind), numbers in layers.items():
    parent, last = _split(behind)
    lasts = grouped.setdefault((before, tuple(numbers), parent), [])
    if last not in lasts:
      lasts.append(last)
  written = [
      r'\.'.join(
          part
          for part in (
              re.escape(f'{before}.layers'),
              _any_of(numbers),
              parent,
              _any_of(lasts),
          )
          if part
      )
      for (before, numbers, parent), lasts in grouped.items()
  ]
  return '|'.join([*plain, *written])


def _split(behind: str) -> tuple[str, str]:
  """Splits the name after a layer in parent and last name, as regexes."""
  parent, _, last = behind.rpartition('.')
  if last == 'linear':  # In towers, the name is the one before.
    parent, _, last = parent.rpartition('.')
    last += '.linear'
  parent = re.escape(parent)
  return _EXPERT.sub(r'\g<1>\\d+', parent), re.escape(last)


def _any_of(values: Sequence[str]) -> str:
  return values[0] if len(values) == 1 else f'({"|".join(values)})'
