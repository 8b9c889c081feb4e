"""Reads a PEFT folder into LoRA by the rows of a model."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

from etils import epath
import numpy as np

from gemma4_lora import host
from gemma4_lora.gemma4 import _leaves
from gemma4_lora.gemma4 import _linears
from gemma4_lora.host import _storage_errors
from gemma4_lora.host.files import _json_objects
from gemma4_lora.host.files import _regular
from gemma4_lora.host.folders import _commit
from gemma4_lora.peft import _adapter_config
from gemma4_lora.peft import _branch
from gemma4_lora.peft import _check_tensors
from gemma4_lora.peft import _expert_tensors
from gemma4_lora.peft import _full_tensors
from gemma4_lora.peft import _peft_modules
from gemma4_lora.peft import _tensors
from gemma4_lora.targets import _full
from gemma4_lora.targets import _rule
from gemma4_lora.targets import _scale


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folder:
  """The content of a PEFT folder.

  Attributes:
    config: Its settings.
    loras: LoRA of each row that it adapts, in the table's order.
    copies: Parts of the base that were trained in full.
    modules_to_save: Rules that select these.
  """

  config: _adapter_config.PeftConfig
  loras: Sequence[_branch.RowLoRA]
  copies: Sequence[tuple[_full.Saved, np.ndarray]]
  modules_to_save: Sequence[_rule.Rule]

  @property
  def leaves(self) -> dict[str, np.ndarray]:
    """LoRA leaves by their dotted path in the model's parameters."""
    leaves = {part.path: value for part, value in self.copies}
    for lora in self.loras:
      path = lora.row.lora_path
      leaves |= {f'{path}.{name}': x for name, x in lora.leaves.items()}
    return leaves

  @property
  def scales(self) -> dict[str, float]:
    """Factor of the product of A and B, by the name of the row."""
    return {
        x.row.name: _scale.scale(
            x.alpha, x.rank, use_rslora=self.config.use_rslora
        )
        for x in self.loras
    }


def read(path: epath.PathLike, *, model_config: Any, who: str) -> Folder:
  """Reads a folder that PEFT wrote, or `g4.hf.save_peft`.

  Args:
    path: Folder with `adapter_config.json` and `adapter_model.safetensors`.
    model_config: Config of the model that it belongs to.
    who: What asks, for messages.

  Raises:
    FileNotFoundError: There is no such folder or file.
    ValueError: The folder is not a LoRA, does not fit this model, is damaged,
      or contradicts its config. The message has tensor or setting, and both
      sides.
  """
  config, tensors = read_raw(path, who=who)
  rows = _linears.linears(model_config)
  found = _check_tensors.match(tensors, config, rows)
  loras = _row_loras(found, config, _ranks_apart(tensors))
  order = {row.name: i for i, row in enumerate(rows)}
  everything = (*rows, *_leaves.leaves(model_config))
  copies = _full_tensors.from_modules(
      tensors.full, config, everything, path=tensors.path
  )
  return Folder(
      config=config,
      loras=sorted(loras, key=lambda lora: order[lora.row.name]),
      copies=copies,
      modules_to_save=_full_tensors.rules(copies, everything),
  )


def read_raw(
    path: epath.PathLike, *, who: str
) -> tuple[_adapter_config.PeftConfig, _tensors.Tensors]:
  """Reads a folder's config and tensors, for any model.

  Args:
    path: See `read`.
    who: What asks, for messages.

  Raises:
    FileNotFoundError: There is no such folder or file.
    ValueError: Not a LoRA, damaged, or left from an interrupted write.
  """
  path = host.path(path, who=who)
  with _storage_errors.explained(path, who=who):
    path = _commit.whole(path, who=who)
    config_path, tensors_path = _tensors.find(path, who=who)
  if host.is_local(path):  # The tensors are mapped.
    config = _adapter_config.read(config_path, _regular.read(config_path))
    return config, _tensors.read(tensors_path)
  names = config_path.name, tensors_path.name
  data = _commit.read_files(path, names, who=who)
  config = _adapter_config.read(config_path, data[config_path.name])
  return config, _tensors.read(tensors_path, data[tensors_path.name])


def _row_loras(
    found: Sequence[_peft_modules.Found],
    config: _adapter_config.PeftConfig,
    ranks_apart: Mapping[str, Sequence[int]],
) -> list[_branch.RowLoRA]:
  """Joins the modules of each row."""
  loras, by_row = [], {}
  for x in found:
    if x.site.parameter:
      loras += _expert_tensors.from_stacked(
          x.branch,
          {row.projection: row for row in x.site.rows},
          ranks=ranks_apart.get(x.branch.name),
          use_rslora=config.use_rslora,
      )
    else:
      (row,) = x.site.rows
      by_row.setdefault(row.name, []).append(x)
  for parts in by_row.values():
    parts.sort(key=lambda x: x.site.index or 0)
    (row,) = parts[0].site.rows
    branches = [x.branch for x in parts]
    if row.is_routed:
      loras.append(_expert_tensors.from_per_expert(row, branches))
    else:
      loras.append(_branch.to_row(row, branches, config.variant))
  return loras


def _ranks_apart(tensors: _tensors.Tensors) -> dict[str, Sequence[int]]:
  """Returns the note of `save_peft` on gate and up that do not share A."""
  noted = tensors.metadata.get(_expert_tensors.METADATA)
  if noted is None:
    return {}
  where = f'{tensors.path}, {_expert_tensors.METADATA} of its metadata'
  ranks = _json_objects.parse(noted, path=where)
  for name, value in ranks.items():
    are_two = isinstance(value, list) and len(value) == 2
    if not are_two or any(type(n) is not int or n < 0 for n in value):
      raise ValueError(
          f'{where}: {_regular.shown(name)} takes the ranks of gate and up. Got:'
          f' {_regular.shown(value)}'
      )
  return ranks
