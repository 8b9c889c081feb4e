"""Reads the tensors of a PEFT folder, by module."""

from collections.abc import Mapping
import dataclasses
import pathlib
import re

import numpy as np
import safetensors

from gemma4_lora.hf import _adapter_config
from gemma4_lora.hf import _sites

NAME = 'adapter_model.safetensors'

_KEY = re.compile(
    re.escape(_sites.ROOT)
    + r'(?P<module>.+)\.(?P<part>lora_A\.weight|lora_B\.weight'
    r'|lora_magnitude_vector(\.weight)?)'
)
# What is trained in full; neither LoRA's nor a base layer's.
_FULL = re.compile(
    re.escape(_sites.ROOT)
    + r'(?P<module>(?!.*(lora_|base_layer|modules_to_save)).+)\.weight'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensors:
  """What stands in the file.

  Attributes:
    path: Of the file.
    modules: By module's name in the model: `A`, `B` and, with DoRA, `m`; float32.
    full: By module's name, weights of what is trained in full.
    metadata: Of the file.
  """

  path: pathlib.Path
  modules: Mapping[str, Mapping[str, np.ndarray]]
  full: Mapping[str, np.ndarray]
  metadata: Mapping[str, str]


def find(path: pathlib.Path, *, who: str) -> tuple[pathlib.Path, pathlib.Path]:
  """Returns the two files of a PEFT folder: config and tensors.

  Raises:
    FileNotFoundError: There is no such folder, or no such file in it.
  """
  if not path.is_dir():
    what = 'is a file' if path.exists() else 'does not exist'
    raise FileNotFoundError(
        f'{who} takes a folder with {_adapter_config.NAME} and {NAME}. {path} {what}.'
    )
  for name in (_adapter_config.NAME, NAME):
    if not (path / name).is_file():
      there = ', '.join(sorted(x.name for x in path.iterdir())) or 'nothing'
      hint = ''
      if (path / 'adapter_model.bin').exists() and name == NAME:
        hint = ' PEFT writes it for save_pretrained(safe_serialization=True).'
      elif (path / 'config.json').exists():
        hint = ' It looks like a whole model, not like an adapter.'
      raise FileNotFoundError(
          f'{who}: {path} has no {name}. It has: {there}.{hint}'
      )
  return path / _adapter_config.NAME, path / NAME


def read(path: pathlib.Path) -> Tensors:
  """Reads all tensors.

  Raises:
    ValueError: The file is truncated or no safetensors file, or has a tensor
      that is none of a LoRA.
  """
  try:
    with safetensors.safe_open(path, framework='numpy') as file:
      tensors = {key: file.get_tensor(key) for key in file.keys()}
      metadata = file.metadata() or {}
  except safetensors.SafetensorError as e:
    raise ValueError(
        f'{path} cannot be read: {e}. It is truncated, or no safetensors file.'
    ) from e
  if not tensors:
    raise ValueError(f'{path} has no tensors.')
  modules, full = {}, {}
  for key, tensor in tensors.items():
    found = _KEY.fullmatch(key)
    if found is None:
      whole = _FULL.fullmatch(key)
      if whole is None:
        raise ValueError(f'{path}: {_unknown(key)}')
      full[whole['module']] = _float32(path, key, tensor)
      continue
    part = found['part'].removeprefix('lora_')[0]
    modules.setdefault(found['module'], {})[part] = _float32(path, key, tensor)
  return Tensors(path=path, modules=modules, full=full, metadata=metadata)


def full_key(module: str) -> str:
  """Name of the tensor of a module that is trained in full."""
  return f'{_sites.ROOT}{module}.weight'


def key(module: str, part: str) -> str:
  """Name of a tensor in the file: of `A`, `B` or `m`."""
  end = 'lora_magnitude_vector' if part == 'm' else f'lora_{part}.weight'
  return f'{_sites.ROOT}{module}.{end}'


def _float32(path: pathlib.Path, key: str, tensor: np.ndarray) -> np.ndarray:
  """Returns a tensor in float32, and raises if it is none of numbers."""
  if tensor.dtype.kind in 'iub':
    raise ValueError(
        f'{path}: {key} is {tensor.dtype}, and LoRA has floating tensors only.'
    )
  tensor = tensor.astype(np.float32)
  bad = int(np.sum(~np.isfinite(tensor)))
  if bad:
    raise ValueError(
        f'{path}: {key} has {bad} of {tensor.size} values that are NaN or'
        ' infinite.'
    )
  return tensor


def _unknown(key: str) -> str:
  """Says why a tensor is none of a LoRA on linears."""
  if 'lora_embedding' in key:
    return f'{key} is LoRA on an embedding, which g4.nn.LoRA does not have.'
  return (
      f'unexpected tensor {key}. Names are {_sites.ROOT}<module>.lora_A.weight,'
      ' .lora_B.weight and, with DoRA, .lora_magnitude_vector.'
  )
