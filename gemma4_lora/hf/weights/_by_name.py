"""Tensors of a base model by their short names."""

from collections.abc import Mapping
import dataclasses
import re

import numpy as np

from gemma4_lora.gemma4 import _hf_names
from gemma4_lora.hf.weights import _mapped
from gemma4_lora.hf.weights import _tensor_leaf
from gemma4_lora.host.files import _regular

_HEADS = (
    'lm_head.weight',
    'model.lm_head.weight',
    'language_model.lm_head.weight',
)
_TABLE = 'embed_tokens.weight'
_OF_PEFT = re.compile(
    r'(^|\.)(base_layer|lora_[A-Za-z_]+|modules_to_save|original_module)(\.|$)'
)
_BLOCK_BYTES = 2**24

Tensors = Mapping[str, _tensor_leaf.Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByName:
  """Tensors of a base model.

  Attributes:
    tensors: By short name, as rows have it, without the output head.
    full: The full name of each.
    head: Name and tensor of an output head, if there is one.
  """

  tensors: Tensors
  full: Mapping[str, str]
  head: tuple[str, _tensor_leaf.Tensor] | None = None


def by_name(named: Tensors) -> ByName:
  """Returns tensors by their short names.

  Args:
    named: All tensors, by their names in the file.

  Raises:
    ValueError: It is a model of PEFT, or has a weight twice.
  """
  peft = [name for name in named if _OF_PEFT.search(name)]
  if peft:
    raise ValueError(
        f'{len(peft)} tensors belong to a model that PEFT has wrapped and that'
        f' is not merged, {_regular.shown(peft[0])} first. Merge it'
        ' (model.merge_and_unload(), then save_pretrained), or load the base'
        ' as it was released and the adapter by g4.hf.load_peft.'
    )
  is_unified = _hf_names.is_unified(named)
  tensors, full, head = {}, {}, None
  for name, tensor in named.items():
    if name in _HEADS:
      if head is not None:
        raise ValueError(_twice(head[0], name))
      head = name, tensor
      continue
    short = _hf_names.short(name)
    if is_unified:
      short = _hf_names.in_module(short)
    if short in tensors:
      raise ValueError(_twice(full[short], name))
    tensors[short], full[short] = tensor, name
  return ByName(tensors=tensors, full=full, head=head)


def check_head(found: ByName) -> None:
  """Checks that an output head equals the embedding, as in Gemma 4.

  Reads both, or nothing if there is no head.

  Raises:
    ValueError: They differ.
  """
  table = found.tensors.get(_TABLE)
  if found.head is None or table is None:
    return
  name, head = found.head
  differs = f'{name} {list(head.shape)} {head.dtype} differs from'
  said = f'{found.full[_TABLE]} {list(table.shape)} {table.dtype}'
  if head.shape != table.shape or _differ(head, table):
    raise ValueError(
        f'{differs} {said}. Gemma 4 has one table for both, and so has gemma: a'
        ' head that was trained by itself has no place here. Train it with'
        ' tie_word_embeddings=True, or keep the two equal.'
    )


def _differ(head: _tensor_leaf.Tensor, table: _tensor_leaf.Tensor) -> bool:
  """Whether any number differs; reads both, some rows at a time."""
  is_plain = isinstance(head, _mapped.Tensor) and isinstance(
      table, _mapped.Tensor
  )
  if not is_plain or not head.shape:
    return _unequal(head.read(), table.read())
  row_bytes = max(
      1,
      int(np.prod(head.shape[1:]))
      * max(head.dtype.itemsize, table.dtype.itemsize),
  )
  step = max(1, _BLOCK_BYTES // row_bytes)
  readers = [(x.open(), x.dtype) for x in (head, table)]
  for start in range(0, head.shape[0], step):
    rows = min(step, head.shape[0] - start)
    blocks = []
    for reader, dtype in readers:
      block = np.empty((rows, *head.shape[1:]), dtype)
      reader.read_into(block)
      blocks.append(block)
    if _unequal(*blocks):
      return True
  return False


def _unequal(a: np.ndarray, b: np.ndarray) -> bool:
  if a.dtype == b.dtype:
    return a.tobytes() != b.tobytes()
  return not np.array_equal(a.astype(np.float64), b.astype(np.float64))


def _twice(first: str, second: str) -> str:
  return (
      f'{_regular.shown(first)} and {_regular.shown(second)} are one weight under'
      ' two names. Remove one of them.'
  )
