"""Maps modules of a PEFT folder to rows of the table."""

from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses

from gemma4_lora.gemma4 import _linears
from gemma4_lora.host import _escapes
from gemma4_lora.peft import _expert_tensors

# PEFT's names around the model: `base_model` is the tuner, `model` the model.
ROOT = 'base_model.model.'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Site:
  """The place of a module in a row.

  Attributes:
    rows: The row; of a stacked expert tensor, the rows that it holds.
    index: Layer of a stacked weight, or expert; None for the whole row.
    parameter: Whether it is a tensor of experts, as `target_parameters` names.
  """

  rows: tuple[_linears.Linear, ...]
  index: int | None = None
  parameter: bool = False


def sites(rows: Iterable[_linears.Linear]) -> dict[str, Site]:
  """Returns the site of each name, below the prefix of its tower.

  Tensors of experts have the name of the parameter; each expert also has the
  name of its module.

  Args:
    rows: The table, dead rows included.
  """
  names = {}
  for row in rows:
    if row.is_routed:
      earlier = names[row.hf_name].rows if row.hf_name in names else ()
      names[row.hf_name] = Site(rows=(*earlier, row), parameter=True)
      for e, name in enumerate(_expert_tensors.module_names(row)):
        names[name] = Site(rows=(row,), index=e)
    elif row.stacked:
      for layer, name in enumerate(row.hf_names):
        names[name] = Site(rows=(row,), index=layer)
    else:
      names[row.hf_name] = Site(rows=(row,))
  return names


def listed(items: Sequence[object], *, most: int = 3) -> str:
  r"""`a, b, c and 5 more`; of names in files, `\x1b` is spelled out."""
  text = _escapes.escaped(', '.join(map(str, items[:most])))
  return f'{text} and {len(items) - most} more' if len(items) > most else text
