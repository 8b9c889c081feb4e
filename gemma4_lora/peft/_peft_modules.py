"""Finds the row of each module of a PEFT folder in a model."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import difflib

import numpy as np

from gemma4_lora.gemma4 import _hf_names
from gemma4_lora.gemma4 import _linears
from gemma4_lora.peft import _adapter_config
from gemma4_lora.peft import _branch
from gemma4_lora.peft import _sites
from gemma4_lora.peft import _tensors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
  """A module of the file, and its place in the model.

  Attributes:
    site: Its place in the table.
    prefix: The part of the module's name before the branch's name.
    branch: Its arrays and settings.
  """

  site: _sites.Site
  prefix: str
  branch: _branch.Branch

  @property
  def full_name(self) -> str:
    """The name that settings are about."""
    if self.site.parameter:
      return f'{self.prefix}{self.branch.name}'
    return self.branch.module


def match(
    tensors: _tensors.Tensors,
    config: _adapter_config.PeftConfig,
    rows: Sequence[_linears.Linear],
) -> tuple[list[Found], list[str]]:
  """Returns the modules of the file, and those that the model does not have.

  Args:
    tensors: Tensors of the file; each module has A and B.
    config: The same folder's config.
    rows: The model's table.

  Raises:
    ValueError: The config does not say which tensor of experts is meant, or two
      modules are one in the model.
  """
  sites = _sites.sites(rows)
  found, unknown = [], []
  for module, arrays in tensors.modules.items():
    where = _locate(module, tensors, config, sites)
    if where is None:
      if not _is_copy_of_keys(module, tensors):
        unknown.append(module)
      continue
    prefix, name = where
    # Settings are about the file's own names; wrappers have that of a parameter.
    configured = prefix + name if sites[name].parameter else module
    found.append(
        Found(
            site=sites[name],
            prefix=prefix,
            branch=_branch.Branch(
                tower=sites[name].rows[0].tower,
                name=name,
                module=module,
                rank=config.rank(configured),
                alpha=config.alpha(configured),
                a=arrays['a'],
                b=arrays['b'],
                own={x.name: arrays[x.name] for x in config.variant.own},
            ),
        )
    )
  _check_once(found, tensors)
  return found, unknown


def _is_copy_of_keys(module: str, tensors: _tensors.Tensors) -> bool:
  """Whether it is the LoRA of keys again, as `save_peft` writes it for vLLM."""
  keys, dot, end = module.rpartition('.v_proj')
  others = tensors.modules.get(f'{keys}.k_proj')
  if not dot or end or others is None:
    return False
  own = tensors.modules[module]
  return own.keys() == others.keys() and all(
      np.array_equal(own[name], others[name]) for name in own
  )


def _check_once(found: Sequence[Found], tensors: _tensors.Tensors) -> None:
  """Raises if two modules of the file are the same one in the model."""
  seen: dict[str, dict[int | None, str]] = {}
  for x in found:
    module = x.branch.module
    for row in x.site.rows:
      others = seen.setdefault(row.name, {})
      # Experts are one tensor, whose index is None, or a module each.
      same = [i for i in others if None in (i, x.site.index)]
      for index in (x.site.index, *same):
        if index in others:
          raise ValueError(
              f'{tensors.path} has LoRA of {row.name} twice:'
              f' {_tensors.key(others[index], "a")} and'
              f' {_tensors.key(module, "a")}. The model has it once: remove one'
              ' of them.'
          )
      others[x.site.index] = module


def _locate(
    module: str,
    tensors: _tensors.Tensors,
    config: _adapter_config.PeftConfig,
    sites: Mapping[str, _sites.Site],
) -> tuple[str, str] | None:
  """Returns prefix and name of a module, None if the model lacks it."""
  # As earlier versions of vLLM name them.
  module = module.replace('.moe.experts.', '.experts.')
  for prefix, name in _hf_names.candidates(module):
    if name in sites and not sites[name].parameter:
      return prefix, name
    parameter = _parameter(prefix, name, tensors, config, sites)
    if parameter is not None:
      return prefix, parameter
  return None


def _parameter(
    prefix: str,
    name: str,
    tensors: _tensors.Tensors,
    config: _adapter_config.PeftConfig,
    sites: Mapping[str, _sites.Site],
) -> str | None:
  """Returns the parameter that a wrapper adapts, by nesting if two are there.

  Raises:
    ValueError: The config names none, or too few.
  """
  experts = name.removesuffix('.base_layer')
  parameters = [f'{experts}.{p}' for p in ('gate_up_proj', 'down_proj')]
  if parameters[0] not in sites:
    return None
  inner = f'{prefix}{experts}.base_layer' in tensors.modules
  targeted = [p for p in parameters if config.targets_parameter(prefix + p)]
  if len(targeted) != 1 + inner:
    raise ValueError(
        f'{tensors.path} adapts {1 + inner} tensors of {prefix}{experts}, but'
        f' {config.path} names {len(targeted)} of them:'
        f' target_parameters={list(config.target_parameters)}.'
    )
  # PEFT wraps them in this order, each around the previous one.
  return targeted[0] if name != experts else targeted[-1]


def hint(unknown: Sequence[str], rows: Sequence[_linears.Linear]) -> str:
  """Returns a hint on unknown modules."""
  if all(row.tower == 'text' for row in rows) and any(
      map(_hf_names.is_in_tower, unknown)
  ):
    return 'The model has no towers: make it with text_only=False.'
  name = _hf_names.short(unknown[0])
  close = difflib.get_close_matches(name, _sites.sites(rows))
  if name in close or not close:
    return ''
  return f'Did you mean {" or ".join(close)}?'
