"""Checks what a server would read from a PEFT folder."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from etils import epath
import numpy as np

from gemma4_lora import _trees
from gemma4_lora.gemma4 import _hf_names
from gemma4_lora.nn import _lora
from gemma4_lora.peft import _read_folder
from gemma4_lora.peft import _sites

_WHO = 'g4.nn.check'
# Relative float32 error of gate and up stacked from several As.
_TOLERANCE = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
  """Problems of a folder, and notes."""

  problems: tuple[str, ...]
  notes: tuple[str, ...]


def check_file(
    path: epath.PathLike, *, model: _lora.LoRA, lora: Mapping[str, Any]
) -> Found:
  """Compares a PEFT folder with the LoRA that it should hold.

  Args:
    path: The folder.
    model: A `g4.nn.LoRA`.
    lora: Its LoRA leaves, nested.
  """
  try:
    folder = _read_folder.read(path, model_config=model.model.config, who=_WHO)
  except (ValueError, FileNotFoundError) as e:
    # Raises for names that PEFT or vLLM would ignore, missing experts, NaN, …
    return Found(problems=(str(e),), notes=())
  problems = []
  wanted = {
      linear.row.name: linear.scale(use_rslora=model.use_rslora)
      for linear in model.adapted
  }
  there = folder.scales
  lacking = [name for name in wanted if name not in there]
  if lacking:
    problems.append(
        f'{path} has {len(there)} projections and the model {len(wanted)}:'
        f' {len(lacking)} are missing: {_sites.listed(lacking)}. Save it again.'
    )
  extra = [name for name in there if name not in wanted]
  if extra:
    problems.append(
        f'{path} has {len(extra)} projections that the model does not adapt:'
        f' {_sites.listed(extra)}.'
    )
  other = [
      name for name in wanted if name in there and wanted[name] != there[name]
  ]
  if other:
    problems.append(
        f'{path} has another scale for {len(other)} projections:'
        f' {other[0]} {there[other[0]]:g}, model {wanted[other[0]]:g}.'
    )
  problems += _values(path, lora, folder.leaves)
  return Found(
      problems=tuple(problems),
      notes=tuple(_notes(path, len(there))),
  )


def _values(path, lora, theirs):
  """Yields projections whose values differ from the model's."""
  ours = _trees.dotted(lora)
  other = [
      name
      for name in theirs
      if name in ours
      and (
          ours[name].shape != theirs[name].shape
          or not np.allclose(
              np.asarray(ours[name], np.float32),
              theirs[name],
              rtol=_TOLERANCE,
              atol=0,
          )
      )
  ]
  if other:
    yield (
        f'{path} has other values than the model in {len(other)} of'
        f' {len(theirs)} leaves: {_sites.listed(other)}. It is of another run or'
        ' step: save it again.'
    )


def _notes(path: epath.PathLike, num_projections: int):
  config, tensors = _read_folder.read_raw(path, who=_WHO)
  modules = tensors.modules
  is_multimodal = _hf_names.is_multimodal(modules)
  yield (
      f'{path}: {num_projections} projections in {len(modules)} modules, named'
      f' for {_hf_names.class_name(has_towers=is_multimodal)}.'
  )
  if config.rank_pattern or config.alpha_pattern:
    yield (
        'It has rank_pattern or alpha_pattern, which PEFT reads and vLLM does'
        ' not: for vLLM, train all targets= with one rank and alpha.'
    )
