"""Selectors: which rows of the table LoRA adapts.

A target is a string. Several are a list, whose rows are added up:

| target | rows |
|---|---|
| `'text'` (the default) | every live linear of the text tower but experts and the router |
| `'attention'`, `'mlp'`, `'per_layer_inputs'` | those of one kind |
| `'q'`, `'v'`, `'gate'`, `'router'`, … | one projection, in every layer |
| `'layer_3.attn.v'` | one projection of one layer |
| `'layer_*.attn.q_einsum.w'`, `'layer_*.mlp.**'` | by name or parameter path: `*` within a segment, `**` across segments |

Rows that the model never uses (k and v of a KV-shared layer) are left out,
unless a target can mean nothing else: that is an error. The router is taken
only by its own name.
"""

from collections.abc import Sequence
import difflib
import re

from gemma4_lora import _linears

DEFAULT = ('text',)

_KINDS = ('attention', 'mlp', 'per_layer_inputs')


def resolve(
    targets: Sequence[str], rows: Sequence[_linears.Linear]
) -> tuple[_linears.Linear, ...]:
  """Returns the rows that the targets choose, in the table's order.

  Args:
    targets: Strings as listed at the top of this module.
    rows: The table of the model.

  Returns:
    The chosen live rows, each once.

  Raises:
    ValueError: No target; a target that matches nothing, or only rows that the
      model never uses, or experts.
  """
  if not targets:
    raise ValueError(
        'targets=() adapts nothing. Leave targets out for every live text'
        f' linear, or name some: {", ".join(_known(rows))}.'
    )
  chosen = {
      row.name for target in targets for row in _resolve_one(target, rows)
  }
  return tuple(row for row in rows if row.name in chosen)


def normalize(targets: str | Sequence[str]) -> tuple[str, ...]:
  """Returns the targets as a tuple of strings: hashable, and fit for JSON.

  Args:
    targets: One target or several.

  Raises:
    ValueError: Anything else.
  """
  if isinstance(targets, str):
    return (targets,)
  if not isinstance(targets, Sequence) or not all(
      isinstance(target, str) for target in targets
  ):
    raise ValueError(
        'targets= takes a string or a list of strings, as targets=["q", "v"].'
        f' Got: {targets!r}'
    )
  return tuple(targets)


def _resolve_one(
    target: str, rows: Sequence[_linears.Linear]
) -> list[_linears.Linear]:
  """Returns the live rows of one target."""
  matches = [row for row in rows if _matches(target, row)]
  if not matches and any(
      target in (row.name, row.projection, row.group)
      for row in rows
      if row.group == 'experts'
  ):
    raise ValueError(
        f'targets={target!r}: LoRA on the routed experts is not supported. The'
        " dense MLP beside them is: targets='mlp'."
    )
  if not matches:
    close = difflib.get_close_matches(target, _names(rows), n=3, cutoff=0.5)
    hint = f' Did you mean {" or ".join(map(repr, close))}?' if close else ''
    raise ValueError(
        f'targets={target!r} matches no linear of this model.{hint} It has:'
        f' {", ".join(_known(rows))}; or give a path, as'
        ' "layer_*.attn.q_einsum.w".'
    )
  live = [row for row in matches if row.live]
  if not live:
    raise ValueError(
        f'targets={target!r} matches only linears whose result the model never'
        f' uses ({matches[0].name}: its layer reads the keys and values of'
        ' another one), so that LoRA there could not learn. Name a layer that'
        ' computes its own.'
    )
  return live


def _matches(target: str, row: _linears.Linear) -> bool:
  """Whether a target means this row, dead or live."""
  if row.group == 'experts':
    return False
  if target == 'text':
    return row.group in _KINDS
  if target in _KINDS:
    return row.group == target
  if target in (row.projection, row.name):
    return True
  if row.group == 'router':  # By its own name only.
    return False
  pattern = _glob(target)
  return bool(pattern.fullmatch(row.name) or pattern.fullmatch(row.path))


def _glob(target: str) -> re.Pattern[str]:
  """Dotted glob: `*` stays within a segment, `**` crosses segments."""
  parts = re.split(r'(\*\*|\*)', target)
  wildcards = {'**': '.*', '*': '[^.]*'}
  return re.compile(''.join(wildcards.get(p, re.escape(p)) for p in parts))


def _known(rows: Sequence[_linears.Linear]) -> list[str]:
  """The targets that a message offers: kinds and projections."""
  projections = dict.fromkeys(
      row.projection for row in rows if row.group != 'experts'
  )
  groups = {row.group for row in rows}
  return ['text', *(kind for kind in _KINDS if kind in groups), *projections]


def _names(rows: Sequence[_linears.Linear]) -> list[str]:
  """Everything that a misspelt target may have meant, each once."""
  rows = [row for row in rows if row.group != 'experts']
  paths = (row.path for row in rows)
  return list(dict.fromkeys((*_known(rows), *(r.name for r in rows), *paths)))
