"""Parts of the base that are trained in full: PEFT's `modules_to_save`."""

from collections.abc import Sequence
import dataclasses
import math
from typing import Any

from gemma4_lora import _trees
from gemma4_lora.gemma4 import _leaves
from gemma4_lora.gemma4 import _linears
from gemma4_lora.targets import _resolve
from gemma4_lora.targets import _rule

_ARGUMENT = 'modules_to_save'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Saved:
  """A part of the base that is trained in full.

  A copy is trained; the base leaf stays, frozen and unused.

  Attributes:
    row: A projection, or a leaf that is not a linear.
  """

  row: _linears.Linear | _leaves.Leaf

  @property
  def path(self) -> str:
    """Dotted path of the copy: `final_norm.lora.scale`, `….lora.q.w`."""
    if isinstance(self.row, _linears.Linear):
      return f'{self.row.lora_path}.w'
    *_, last = self.row.path.split('.')
    return '.'.join(filter(None, (self.row.module_path, _trees.LORA_KEY, last)))

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of the copy: the part's, without the axis of slots."""
    axis = self.row.slot_axis
    return tuple(n for i, n in enumerate(self.row.shape) if i != axis)

  @property
  def num_params(self) -> int:
    return math.prod(self.shape)


def resolve_full(
    rules: Sequence[_rule.Rule],
    rows: Sequence[_linears.Linear | _leaves.Leaf],
) -> tuple[Saved, ...]:
  """Returns the rows that the rules select, in the table's order.

  Args:
    rules: They add up.
    rows: All of the model, linears and others.

  Raises:
    ValueError: A rule matches nothing, or only rows that the model never uses;
      or it has a setting of LoRA.
  """
  chosen = set()
  for rule in rules:
    _rule.check_no_settings(
        rule,
        argument=_ARGUMENT,
        what='what is trained in full',
        hint=', or move the rule to targets=',
    )
    for row in _resolve.rows_of(rule, rows, argument=_ARGUMENT):
      chosen.add(row.name)
  return tuple(Saved(row=row) for row in rows if row.name in chosen)


def normalize_full(rules: Any) -> tuple[_rule.Rule, ...]:
  """Returns rules from what a user wrote: hashable, and fit for JSON."""
  return _rule.normalize(rules, argument=_ARGUMENT) if rules else ()
