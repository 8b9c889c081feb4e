"""The table of LoRA variants: chosen by an argument, or by a leaf's name."""

from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

from gemma4_lora.variants import _dora
from gemma4_lora.variants import _leaf
from gemma4_lora.variants import _plain
from gemma4_lora.variants import _variant

# The first is the default, which no argument chooses.
ALL = (_plain.PLAIN, _dora.DORA)

# Arguments of `g4.nn.LoRA`, named as the fields of PEFT's `LoraConfig`.
ARGUMENTS = tuple(x.argument for x in ALL if x.argument is not None)


def chosen(settings: Mapping[str, Any]) -> _variant.Variant:
  """Returns the variant that the arguments of `g4.nn.LoRA` choose.

  Args:
    settings: Arguments by name, or the fields of PEFT's `adapter_config.json`.
      Those left out are off.

  Raises:
    ValueError: They choose two variants.
  """
  default, *others = ALL
  found = [x for x in others if settings.get(x.argument or '')]
  if len(found) > 1:
    names = ' and '.join(x.setting for x in found)
    raise ValueError(f'{names} exclude each other. Choose one.')
  return found[0] if found else default


def arguments(variant: _variant.Variant) -> dict[str, Any]:
  """Returns the arguments, bools, of `g4.nn.LoRA` that choose a variant."""
  return {x.argument: x == variant for x in ALL if x.argument is not None}


def owners() -> Iterator[tuple[_variant.Variant, _leaf.OwnLeaf]]:
  """Yields every leaf beside A and B, with its variant."""
  for variant in ALL:
    for leaf in variant.own:
      yield variant, leaf


def owner(name: str) -> tuple[_variant.Variant, _leaf.OwnLeaf] | None:
  """Returns the variant and the leaf of a name; None for A, B and unknown ones.

  Args:
    name: Last key of its path.
  """
  return next((x for x in owners() if x[1].name == name), None)


def from_base(name: str) -> bool:
  """Whether a leaf starts from the base and is set again after a restore."""
  found = owner(name)
  return found is not None and found[1].from_base
