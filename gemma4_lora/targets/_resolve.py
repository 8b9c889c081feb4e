"""Resolves rules to adapted rows."""

from collections.abc import Sequence
import dataclasses
import difflib
import math
import re

from gemma4_lora import variants
from gemma4_lora.gemma4 import _linears
from gemma4_lora.gemma4 import _rows
from gemma4_lora.targets import _match
from gemma4_lora.targets import _rule
from gemma4_lora.targets import _scale


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapted:
  """A row that is adapted, with its settings.

  Attributes:
    row: The projection.
    rank: Rank of A and B.
    alpha: Numerator of the branch's scale.
    dropout: Rate on the branch's input.
    variant: The LoRA variant.
  """

  row: _linears.Linear
  rank: int
  alpha: float
  dropout: float
  variant: variants.Variant = variants.PLAIN

  @property
  def shapes(self) -> dict[str, tuple[int, ...]]:
    """Shape of each LoRA leaf, by name: `'a'`, `'b'`, ..."""
    return {x.name: x.shape(self.row, self.rank) for x in self.variant.leaves}

  @property
  def num_params(self) -> int:
    """Entries of all its leaves."""
    return sum(map(math.prod, self.shapes.values()))

  def scale(self, *, use_rslora: bool) -> float:
    """Factor of the product of A and B."""
    return _scale.scale(self.alpha, self.rank, use_rslora=use_rslora)


def resolve(
    rules: Sequence[_rule.Rule],
    rows: Sequence[_linears.Linear],
    *,
    rank: int,
    alpha: float | None = None,
    dropout: float = 0.0,
    variant: variants.Variant = variants.PLAIN,
) -> tuple[Adapted, ...]:
  """Returns the rows that the rules adapt, in the table's order.

  Args:
    rules: The first that matches a row decides.
    rows: The table of the model.
    rank: Rank of rules without one.
    alpha: Alpha of rules without one; None for their rank.
    dropout: Dropout of rules without one.
    variant: Variant of all rules.

  Returns:
    The live rows that are adapted, each once.

  Raises:
    ValueError: There is no rule; or a rule matches nothing, only rows of
      earlier rules, or only rows that the model never uses.
  """
  if not rules:
    raise ValueError(
        'targets=() adapts nothing. Leave targets out for every text linear'
        f' whose output is used, or name some: {", ".join(_known(rows))}.'
    )
  taken: dict[str, Adapted] = {}
  owners: dict[str, _rule.Rule] = {}
  for rule in rules:
    chosen = rows_of(rule, rows)
    new = [row for row in chosen if row.name not in taken]
    if not new:
      owner = owners[chosen[0].name]
      raise ValueError(
          f'{rule} matches only linears that an earlier rule took:'
          f' {chosen[0].name} is taken by {owner}. The first match wins: put the'
          ' narrower rule first, or drop this one.'
      )
    rule_rank = rank if rule.rank is None else rule.rank
    rule_alpha = alpha if rule.alpha is None else rule.alpha
    for row in new:
      owners[row.name] = rule
      taken[row.name] = Adapted(
          row=row,
          rank=rule_rank,
          alpha=rule_rank if rule_alpha is None else rule_alpha,
          dropout=dropout if rule.dropout is None else rule.dropout,
          variant=variant,
      )
  return tuple(taken[row.name] for row in rows if row.name in taken)


def rows_of[R: _rows.Row](
    rule: _rule.Rule, rows: Sequence[R], *, argument: str = 'targets'
) -> list[R]:
  """Returns the live rows of one rule.

  Args:
    rule: The rule.
    rows: The table.
    argument: The argument in which the user wrote the rule, for messages.

  Raises:
    ValueError: It selects or excludes nothing, or means only dead rows.
  """
  matched = {}
  for target in rule.selects:
    found = _placed(target, rule, rows)
    if not found:
      raise ValueError(_nothing(target, rule, rows, argument=argument))
    _check_live(target, rule, found)
    matched |= {row.name: row for row in found if row.live}
  for target in rule.excludes:
    found = _placed(target, rule, rows)
    if not found:
      raise ValueError(_nothing(target, rule, rows, argument='exclude'))
    for row in found:
      matched.pop(row.name, None)
  if not matched:
    raise ValueError(f'{rule} excludes all that it selects.')
  return list(matched.values())


def _matching[R: _rows.Row](
    target: str, rule: _rule.Rule, rows: Sequence[R]
) -> list[R]:
  """Returns the rows, dead or live, that one string of a rule means."""
  return [
      row
      for row in rows
      if _match.matches(target, row, tower=rule.tower, regex=rule.regex)
  ]


def _placed[R: _rows.Row](
    target: str, rule: _rule.Rule, rows: Sequence[R]
) -> list[R]:
  """Returns the rows that one string means, at the rule's place."""
  found = _matching(target, rule, rows)
  return [row for row in found if _is_placed(rule, row, rows)]


def _is_placed(
    rule: _rule.Rule,
    row: _rows.Row,
    rows: Sequence[_rows.Row],
) -> bool:
  """Whether a row is at the rule's place."""
  if rule.tower is not None and row.tower != rule.tower:
    return False
  if rule.attention is not None and row.attention != rule.attention:
    return False
  if rule.layers is None:
    return True
  if not row.layers:
    return False
  # Layers of the row's own tower: -1 is the last of them.
  num_layers = 1 + max(
      n for r in rows if r.tower == row.tower for n in r.layers
  )
  chosen = _match.layer_numbers(rule.layers, num_layers=num_layers)
  meant = chosen.intersection(row.layers)
  if meant and len(meant) < len(row.layers):
    raise ValueError(
        f'{rule} means {len(meant)} of the {len(row.layers)} layers of'
        f' {row.name}. Gemma keeps the layers of the {row.tower} tower in one'
        ' weight: it is all of them or none. Leave layers= out, or'
        ' add tower="text".'
    )
  return bool(meant)


def _check_live(
    target: str, rule: _rule.Rule, found: Sequence[_rows.Row]
) -> None:
  """Raises if a string means only rows that the model never uses."""
  if not any(row.live for row in found):
    raise ValueError(
        f'{rule}: {target!r} names what the model never uses'
        f' ({found[0].name}: its layer reads the keys and values of another'
        ' one): it could not learn. Name a layer that computes its own.'
    )


def _nothing(
    target: str,
    rule: _rule.Rule,
    rows: Sequence[_rows.Row],
    *,
    argument: str,
) -> str:
  """Returns the error for a string that matches nothing, with close matches."""
  anywhere = _matching(target, dataclasses.replace(rule, tower=None), rows)
  if anywhere:
    return (
        f'{rule}: {target!r} matches nothing where the rule looks. It does'
        f' match {anywhere[0].name}: change layers=, attention= or tower=.'
    )
  close = difflib.get_close_matches(target, _names(rows), n=3, cutoff=0.5)
  hint = f' Did you mean {" or ".join(map(repr, close))}?' if close else ''
  if argument == 'targets' and re.search('norm|embed|scal', target):
    hint += (
        ' LoRA is on linears: name norms, embeddings and scalars in'
        ' modules_to_save=, which trains them in full.'
    )
  what = 'linear' if argument == 'targets' else 'part'
  return (
      f'{argument}={target!r} matches no {what} of this model.{hint} It has:'
      f' {", ".join(_known(rows))}; or give a path, as'
      ' "layer_*.attn.q_einsum".'
  )


def _known(rows: Sequence[_rows.Row]) -> list[str]:
  """The kinds and projections of the model, for messages."""
  kinds = [
      kind
      for kind in _match.KINDS
      if any(_match.matches(kind, r, tower=None, regex=False) for r in rows)
  ]
  return list(dict.fromkeys([*kinds, *(row.projection for row in rows)]))


def _names(rows: Sequence[_rows.Row]) -> list[str]:
  """All names that a misspelt string may mean, each once."""
  names = [*_known(rows), 'all-linear']
  for row in rows:
    starred = row.starred(row.module_path)
    names += [row.name, starred, row.hf_name.rpartition('.')[2], row.path]
  return list(dict.fromkeys(names))
