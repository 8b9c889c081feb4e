"""What the rules of servers look at: a PEFT folder, without its numbers."""

from collections.abc import Collection
import dataclasses
import functools
from typing import Any

from gemma4_lora.gemma4 import _hf_names
from gemma4_lora.gemma4 import _upstream
from gemma4_lora.peft import _adapter_config

_ATTENTION = '.self_attn.'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapter:
  """A LoRA as a PEFT folder has it.

  Attributes:
    config: The settings.
    names: Names of the adapted modules, as settings are about them.
    full: Names of what was trained in full.
    model_config: Config of the model that it is for.
  """

  config: _adapter_config.PeftConfig
  names: tuple[str, ...]
  full: tuple[str, ...]
  model_config: _upstream.TransformerConfig

  @functools.cached_property
  def modules(self) -> tuple[str, ...]:
    """The names without the prefix of their tower."""
    return tuple(map(_hf_names.short, self.names))

  @property
  def of_text(self) -> list[str]:
    return [x for x in self.modules if not _hf_names.is_in_tower(x)]

  @property
  def of_towers(self) -> list[str]:
    return [x for x in self.modules if _hf_names.is_in_tower(x)]

  @property
  def stacked_experts(self) -> list[str]:
    """Wrappers of PEFT around the tensors of all experts."""
    return [x for x in self.modules if x.endswith(('.experts', '.base_layer'))]

  @property
  def single_experts(self) -> list[str]:
    """Modules of one expert each."""
    if self.stacked_experts:
      return []
    return [x for x in self.modules if '.experts.' in x]

  @property
  def ranks(self) -> set[int]:
    return {self.config.rank(_parameter(x)) for x in self.names}

  @property
  def alphas(self) -> set[float]:
    return {self.config.alpha(_parameter(x)) for x in self.names}

  def layers_with(self, projection: str) -> set[int]:
    """Layers of the text whose attention adapts a projection."""
    end = f'{_ATTENTION}{projection}'
    return {_layer(x) for x in self.of_text if x.endswith(end)}

  def layers_of_one(self) -> set[int]:
    """Layers where one projection gives keys and values."""
    config = self.model_config
    shared = _upstream.shares_kv(config)
    return {
        i
        for i in range(config.num_layers)
        if _upstream.k_is_v(config, i) and not shared[i]
    }


def _layer(name: str) -> int:
  return int(name.split('layers.')[1].split('.')[0])


def _parameter(module: str) -> str:
  """Returns what patterns are compared with: PEFT wraps `down_proj` outside."""
  if module.endswith('.experts.base_layer'):
    return module.removesuffix('.base_layer') + '.gate_up_proj'
  return f'{module}.down_proj' if module.endswith('.experts') else module


def short(items: Collection[Any], most: int = 3) -> str:
  """Returns a few of them, for messages."""
  items = sorted(items)
  more = f' and {len(items) - most} more' if len(items) > most else ''
  return ', '.join(map(str, items[:most])) + more
