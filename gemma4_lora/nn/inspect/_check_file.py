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
from gemma4_lora.targets import _scale

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
  ours = _trees.dotted(lora)
  folder = _as_trained(folder, model, ours)
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
  problems += _values(path, ours, folder.leaves)
  return Found(
      problems=tuple(problems),
      notes=tuple(_notes(path, len(there))),
  )


def _as_trained(
    folder: _read_folder.Folder, model: _lora.LoRA, ours: Mapping[str, Any]
) -> _read_folder.Folder:
  """Undoes `save_peft(server=)`: scales in B, ranks filled with zeros.

  Where that does not give the model's own B, the folder is left as it is.
  """
  scales, linears = folder.scales, {x.row.name: x for x in model.adapted}
  config = dataclasses.replace(folder.config, use_rslora=model.use_rslora)
  loras = []
  for lora in folder.loras:
    linear = linears.get(lora.row.name)
    if linear is not None:
      scale = linear.scale(use_rslora=model.use_rslora)
      factor = np.float32(scales[lora.row.name] / scale)
      rank = linear.shapes['a'][-1]
      first = len(linear.shapes['b']) - len(lora.row.out_shape) - 1
      a, behind = np.split(lora.a, [rank], axis=-1)
      b, below = np.split(lora.b, [rank], axis=first)
      b = b * factor
      is_ours = not behind.any() and not below.any()
      if is_ours and _close(ours.get(f'{lora.row.lora_path}.b'), b):
        lora = dataclasses.replace(lora, alpha=linear.alpha, a=a, b=b)
      elif folder.config.use_rslora != config.use_rslora:
        alpha = _scale.alpha_for(
            scales[lora.row.name], lora.rank, use_rslora=model.use_rslora
        )
        lora = dataclasses.replace(lora, alpha=alpha)
    loras.append(lora)
  return dataclasses.replace(folder, loras=loras, config=config)


def _close(ours: Any, theirs: np.ndarray) -> bool:
  return (
      ours is not None
      and ours.shape == theirs.shape
      and np.allclose(
          np.asarray(ours, np.float32), theirs, rtol=_TOLERANCE, atol=0
      )
  )


def _values(path, ours, theirs):
  """Yields projections whose values differ from the model's."""
  other = [
      name
      for name in theirs
      if name in ours and not _close(ours[name], theirs[name])
  ]
  if other:
    yield (
        f'{path} has other values than the model in {len(other)} of'
        f' {len(theirs)} leaves: {_sites.listed(other)}. It is of another run or'
        ' step: save it again.'
    )


def _notes(path: epath.PathLike, num_projections: int):
  _, tensors = _read_folder.read_raw(path, who=_WHO)
  modules = tensors.modules
  is_multimodal = _hf_names.is_multimodal(modules)
  yield (
      f'{path}: {num_projections} projections in {len(modules)} modules, named'
      f' for {_hf_names.class_name(has_towers=is_multimodal)}.'
  )
