"""Which module of a PEFT folder is which row of the table."""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import re

from gemma4_lora.gemma4 import _linears
from gemma4_lora.hf import _expert_tensors

# What PEFT puts around the model: `base_model` is the tuner, `model` the model.
ROOT = 'base_model.model.'

# Where a class of transformers has its language model, and its towers.
_PREFIXES = {
    'Gemma4ForConditionalGeneration': ('model.language_model.', 'model.'),
    'Gemma4ForCausalLM': ('model.', None),
}
CLASSES = tuple(_PREFIXES)
# Longest first. The last ones are of older transformers, and of hand-made files.
_TEXT_PREFIXES = (
    'model.language_model.',
    'language_model.model.',
    'language_model.',
    'model.',
    '',
)
_TOWER_PREFIXES = ('model.', '')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Site:
  """Where in a row a module stands.

  Attributes:
    rows: The row; of a stacked expert tensor, the rows that it holds.
    index: Layer of a stacked weight, or expert; None for all of the row.
    parameter: Whether it is a tensor of experts, as `target_parameters` names.
  """

  rows: tuple[_linears.Linear, ...]
  index: int | None = None
  parameter: bool = False


def sites(rows: Iterable[_linears.Linear]) -> dict[str, Site]:
  """Returns what each name means, below the prefix of its tower.

  Tensors of experts stand under the name of the parameter, and each expert
  under that of its module too.

  Args:
    rows: The table, dead rows included.
  """
  names = {}
  for row in rows:
    if row.group == 'experts':
      packed = names[row.hf_name].rows if row.hf_name in names else ()
      names[row.hf_name] = Site(rows=(*packed, row), parameter=True)
      for e, name in enumerate(_expert_tensors.module_names(row)):
        names[name] = Site(rows=(row,), index=e)
    elif row.stacked:
      for layer, name in enumerate(row.hf_names):
        names[name] = Site(rows=(row,), index=layer)
    else:
      names[row.hf_name] = Site(rows=(row,))
  return names


def prefix(base_model_class: str, tower: str) -> str | None:
  """Returns what stands before the names of a tower, None if it has no such."""
  text, towers = _PREFIXES[base_model_class]
  return text if tower == 'text' else towers


def candidates(module: str) -> Iterator[tuple[str, str]]:
  """Yields how a module's name may split into prefix and name."""
  is_tower = re.match(
      r'(model\.)?(vision_tower|audio_tower|embed_vision|embed_audio)\.', module
  )
  for start in _TOWER_PREFIXES if is_tower else _TEXT_PREFIXES:
    if module.startswith(start):
      yield start, module.removeprefix(start)


def listed(items: Sequence[object], *, most: int = 3) -> str:
  """`a, b, c and 5 more`."""
  text = ', '.join(map(str, items[:most]))
  return f'{text} and {len(items) - most} more' if len(items) > most else text
