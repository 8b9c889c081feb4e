"""Reads the tensors of a PEFT folder, by module."""

from collections.abc import Mapping
import dataclasses
import re

from etils import epath
import numpy as np

from gemma4_lora import variants
from gemma4_lora.host.files import _regular
from gemma4_lora.host.files import _tensors_in_memory
from gemma4_lora.peft import _adapter_config
from gemma4_lora.peft import _sites

NAME = 'adapter_model.safetensors'

# Ends of PEFT's names for each leaf that a variant has.
_ENDS = {
    leaf.name: leaf.peft
    for leaf in (variants.A, variants.B, *(x for _, x in variants.owners()))
}
_NAMES = {end: name for name, ends in _ENDS.items() for end in ends}
_KEY = re.compile(
    f'{re.escape(_sites.ROOT)}(?P<module>.+)'
    rf'\.(?P<end>{"|".join(map(re.escape, _NAMES))})'
)
# Parts trained in full: neither LoRA nor a base layer.
_FULL = re.compile(
    re.escape(_sites.ROOT)
    + r'(?P<module>(?!.*(lora_|base_layer|modules_to_save)).+)\.weight'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensors:
  """The content of the file.

  Attributes:
    path: The file's path.
    modules: The float32 leaves of each module (`'a'`, `'b'`, ...), by the
      module's name in the model.
    full: Weights trained in full, by the module's name.
    metadata: The file's metadata.
  """

  path: epath.Path
  modules: Mapping[str, Mapping[str, np.ndarray]]
  full: Mapping[str, np.ndarray]
  metadata: Mapping[str, str]


def find(path: epath.Path, *, who: str) -> tuple[epath.Path, epath.Path]:
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
    if not (path / name).exists():
      names = sorted(x.name for x in path.iterdir())
      there = _sites.listed(names, most=20) or 'nothing'
      hint = ''
      if (path / 'adapter_model.bin').exists() and name == NAME:
        hint = ' PEFT writes it for save_pretrained(safe_serialization=True).'
      elif (path / 'config.json').exists():
        hint = ' It looks like a whole model, not like an adapter.'
      raise FileNotFoundError(
          f'{who}: {path} has no {name}. It has: {there}.{hint}'
      )
  return path / _adapter_config.NAME, path / NAME


def read(path: epath.Path, data: bytes | None = None) -> Tensors:
  """Reads all tensors.

  Args:
    path: The file's path.
    data: The file's bytes, if it has been read.

  Raises:
    ValueError: The file is truncated or no safetensors file, or has a tensor
      that does not belong to a LoRA.
  """
  if data is not None:
    tensors, metadata = _tensors_in_memory.read(data, path=path)
  else:
    tensors, metadata = _tensors_in_memory.mapped(path)
  if not tensors:
    raise ValueError(f'{path} has no tensors.')
  modules, full, keys = {}, {}, {}
  for key, tensor in tensors.items():
    found = _KEY.fullmatch(key)
    if found is None:
      whole = _FULL.fullmatch(key)
      if whole is None:
        raise ValueError(f'{path}: {_unknown(key)}')
      full[whole['module']] = _float32(path, key, tensor)
      continue
    name = _NAMES[found['end']]
    other = keys.setdefault((found['module'], name), key)
    if other != key:
      raise ValueError(
          f'{path} has one tensor twice: {_regular.shown(other)} and'
          f' {_regular.shown(key)}. Remove one of them.'
      )
    modules.setdefault(found['module'], {})[name] = _float32(path, key, tensor)
  return Tensors(path=path, modules=modules, full=full, metadata=metadata)


def full_key(module: str) -> str:
  """Name of the tensor of a module that is trained in full."""
  return f'{_sites.ROOT}{module}.weight'


def key(module: str, leaf: str) -> str:
  """Name of a tensor in the file, of a leaf by our name: `'a'`, `'b'`, ..."""
  return f'{_sites.ROOT}{module}.{_ENDS[leaf][0]}'


def _float32(path: epath.Path, key: str, tensor: np.ndarray) -> np.ndarray:
  """Returns a tensor in float32; raises if it is not of finite numbers."""
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
  """Returns why a tensor does not belong to a LoRA on linears."""
  key = _regular.shown(key)
  if 'lora_embedding' in key:
    return f'{key} is LoRA on an embedding, which g4.nn.LoRA does not have.'
  own = ''.join(
      f' and, with {variant.name}, .{leaf.peft[0]}'
      for variant, leaf in variants.owners()
  )
  return (
      f'unexpected tensor {key}. Names are {_sites.ROOT}<module>.lora_A.weight,'
      f' .lora_B.weight{own}.'
  )
