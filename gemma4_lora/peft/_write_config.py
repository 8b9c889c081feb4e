"""Writes `adapter_config.json`: PEFT's settings of each module."""

import collections
from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence
import re
from typing import Any

from gemma4_lora.gemma4 import _hf_names
from gemma4_lora.gemma4 import _linears
from gemma4_lora.peft import _branch
from gemma4_lora.peft import _patterns

# The version of PEFT whose `LoraConfig` has the fields below.
_PEFT_VERSION = '0.21.2'

# Fields that are the same in all our folders, at PEFT's defaults.
_DEFAULTS = {
    'alora_invocation_tokens': None,
    'arrow_config': None,
    'auto_mapping': None,
    'bias': 'none',
    'corda_config': None,
    'eva_config': None,
    'exclude_modules': None,
    'fan_in_fan_out': False,
    'inference_mode': True,
    'kasa_config': None,
    'layer_replication': None,
    'layers_pattern': None,
    'layers_to_transform': None,
    'loftq_config': {},
    'lora_bias': False,
    'lora_ga_config': None,
    'megatron_config': None,
    'megatron_core': 'megatron.core',
    'monteclora_config': None,
    'peft_type': 'LORA',
    'peft_version': _PEFT_VERSION,
    'qalora_group_size': 16,
    'revision': None,
    'task_type': 'CAUSAL_LM',
    'trainable_token_indices': None,
    'use_bdlora': None,
    'use_qalora': False,
    'velora_config': None,
}


def config(
    branches: Sequence[_branch.Branch],
    rows: Sequence[_linears.Linear],
    *,
    base_model_class: str,
    init_lora_weights: str,
    names_alone: bool = False,
    **settings: Any,
) -> dict[str, Any]:
  """Returns the fields of the config.

  Args:
    branches: The adapted modules.
    rows: The model's table.
    base_model_class: Class of transformers.
    init_lora_weights: See `g4.nn.LoRA`.
    names_alone: Whether `target_modules` is a list of full names, if ends of
      names are not enough.
    **settings: Other fields, as they are.
  """
  names = {
      (_hf_names.prefix(base_model_class, x.tower) or '') + x.name: x
      for x in branches
  }
  modules = [n for n, x in names.items() if not x.is_parameter]
  parameters = [n for n, x in names.items() if x.is_parameter]
  rank, ranks = _default_and_patterns(
      {n: x.rank for n, x in names.items()}, parameters
  )
  alpha, alphas = _default_and_patterns(
      {n: _number(x.alpha) for n, x in names.items()}, parameters
  )
  return _DEFAULTS | {
      'r': rank,
      'rank_pattern': ranks,
      'lora_alpha': alpha,
      'alpha_pattern': alphas,
      'target_modules': _target_modules(
          modules, rows, base_model_class, names_alone=names_alone
      ),
      'target_parameters': _target_parameters(parameters, rows) or None,
      # PEFT's name of what we call the default.
      'init_lora_weights': (
          True if init_lora_weights == 'default' else init_lora_weights
      ),
      **settings,
  }


def _default_and_patterns(
    values: Mapping[str, Any], parameters: Collection[str]
) -> tuple[Any, dict[str, Any]]:
  """Returns the commonest value, and patterns for names with other values.

  No two patterns fit one name, except for a module whose name begins those of
  parameters. PEFT applies patterns of parameters, but warns that it ignored
  patterns that fit no module. The first pattern that fits decides, and PEFT
  sorts them when it saves: the module's own pattern is a prefix of the other,
  so it comes first in both orders.

  Args:
    values: Values by name of module or parameter.
    parameters: Names of parameters: the commonest value is one of theirs.
  """
  counts = collections.Counter(values[name] for name in parameters or values)
  default, _ = counts.most_common(1)[0]
  values_by_end = {}
  for name, value in values.items():
    values_by_end.setdefault(_end(name), set()).add(value)
  patterns, modules, others = {}, {}, {}
  for name, value in values.items():
    if value == default:
      continue
    if name in parameters:
      others.setdefault(value, []).append(name)
    elif values_by_end[_end(name)] == {value}:  # `q_proj`, wherever it is.
      patterns[re.escape(_end(name))] = value
    else:
      modules.setdefault(value, []).append(name)
  for value, names in modules.items():
    patterns[_patterns.regex(names)] = value
  module = next((name for name in values if name not in parameters), None)
  start = ''
  if others and module is not None:
    patterns[re.escape(module)] = values[module]
    start = f'{re.escape(module)}|'
  for value, names in others.items():
    patterns[start + _patterns.regex(names)] = value
  return default, patterns


def _target_modules(
    modules: Sequence[str],
    rows: Sequence[_linears.Linear],
    base_model_class: str,
    *,
    names_alone: bool,
) -> str | list[str]:
  """Returns plain names if they mean exactly these modules, else a regex."""
  if not modules:
    return []
  if _hf_names.prefix(base_model_class, 'vision') is None:
    ends = {_end(name) for name in modules}
    meant = {
        f'{_hf_names.prefix(base_model_class, "text")}{row.hf_name}'
        for row in rows
        if row.tower == 'text' and row.live and not row.is_routed
        if _end(row.hf_name) in ends
    }
    if meant == set(modules):
      return sorted(ends)
  return sorted(modules) if names_alone else _patterns.regex(modules)


def _target_parameters(
    parameters: Sequence[str], rows: Sequence[_linears.Linear]
) -> list[str]:
  """Returns `experts.down_proj` for all layers, or full names for some."""
  num_layers = len({row.layer for row in rows if row.is_routed})
  by_end = {}
  for name in parameters:
    end = '.'.join(name.split('.')[-2:])
    by_end.setdefault(end, []).append(name)
  written = []
  for end, names in by_end.items():
    written += [end] if len(names) == num_layers else names
  return written


def _end(name: str) -> str:
  return name.rpartition('.')[2]


def _number(x: float) -> float:
  """Whole numbers without a point, as PEFT has them."""
  return int(x) if float(x).is_integer() else float(x)
