"""Gemma's leaves as tensors of transformers: the inverse of `_base_weights`."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import math
import re
from typing import Any

import numpy as np

from gemma4_lora.gemma4 import _hf_names
from gemma4_lora.gemma4 import _leaves
from gemma4_lora.gemma4 import _linears
from gemma4_lora.gemma4 import _names
from gemma4_lora.gemma4 import _sizes
from gemma4_lora.gemma4 import _unified_vision
from gemma4_lora.gemma4 import _upstream
from gemma4_lora.gemma4 import _weights
from gemma4_lora.hf.weights import _base_weights
from gemma4_lora.peft import _sites

Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
  """A tensor of transformers, in a leaf of gemma's.

  Attributes:
    name: Its name in the file.
    shape: The tensor's shape.
    take: Takes it out of the leaf.
    by_rows: Whether it can take rows of the tensor from rows of the leaf.
  """

  name: str
  shape: tuple[int, ...]
  take: Callable[[np.ndarray], np.ndarray]
  by_rows: bool = False


def tensors(
    shapes: Shapes, config: _upstream.TransformerConfig
) -> dict[str, tuple[Tensor, ...]]:
  """Returns the tensors of each leaf in transformers.

  A file with towers is named for `Gemma4ForConditionalGeneration`, or 12B's
  `Gemma4UnifiedForConditionalGeneration`, one without for `Gemma4ForCausalLM`. k, v and key norm of KV-shared layers have no
  tensors: transformers has no such modules.

  Args:
    shapes: Shapes of all leaves, by dotted path below `params`.
    config: The model's config; its towers may differ or be missing.

  Raises:
    ValueError: A leaf has no name there.
  """
  config = _with_towers(shapes, config)
  known = _linear_tensors(shapes, config) | _other_tensors(shapes, config)
  unknown = [path for path in shapes if path not in known]
  if unknown:
    raise ValueError(
        f'{len(unknown)} leaves have no name in transformers:'
        f' {_sites.listed(unknown)}.'
    )
  prefixes = {is_text: _prefix(shapes, is_text) for is_text in (True, False)}
  return {
      path: tuple(
          dataclasses.replace(
              x, name=prefixes[_is_text(path)] + _on_hub(shapes, x.name)
          )
          for x in known[path]
      )
      for path in shapes
  }


def names(
    shapes: Shapes, config: _upstream.TransformerConfig
) -> dict[str, tuple[Tensor, ...]]:
  """Returns the same for leaves that have names, without their prefixes.

  Args:
    shapes: Shapes of some leaves.
    config: See `tensors`.
  """
  return _linear_tensors(shapes, config) | _other_tensors(shapes, config)


def class_name(shapes: Shapes) -> str:
  """Returns the class of transformers that loads these leaves."""
  towers = not all(map(_is_text, shapes))
  return _hf_names.class_name(has_towers=towers, unified=_is_unified(shapes))


def _prefix(shapes: Shapes, is_text: bool) -> str:
  tower = 'text' if is_text else 'vision'
  return _hf_names.prefix(class_name(shapes), tower) or ''


def _is_text(path: str) -> bool:
  return _names.encoder_of(tuple(path.split('.'))) is None


def _with_towers(
    shapes: Shapes, config: _upstream.TransformerConfig
) -> _upstream.TransformerConfig:
  """Returns the config with towers of as many layers as the leaves have.

  Their other sizes are not needed: shapes are the leaves' own.
  """
  vision = _count(shapes, rf'{re.escape(_names.VISION_BLOCK)}\.', axis=0)
  audio = _count(shapes, r'audio_encoder\.conformer/stacked_layers_(\d+)\.')
  encoder: Any = (
      _unified_vision.UnifiedVision()
      if _is_unified(shapes)
      else _tower('vision_encoder', vision)
  )
  return dataclasses.replace(
      config,
      vision_encoder=encoder,
      audio_encoder=_tower('audio_encoder', audio),
  )


def _is_unified(shapes: Shapes) -> bool:
  return 'vision_encoder.pos_embedding' in shapes


def _on_hub(shapes: Shapes, name: str) -> str:
  return _hf_names.on_hub(name) if _is_unified(shapes) else name


def _tower(field: str, num_layers: int) -> Any:
  if not num_layers:
    return None
  tower = getattr(_sizes.SIZES[0].cls.config, field)
  return dataclasses.replace(tower, num_layers=num_layers)


def _count(shapes: Shapes, pattern: str, axis: int | None = None) -> int:
  """Number of layers, by the numbers in the paths or along an axis."""
  found = [(re.match(pattern, path), shape) for path, shape in shapes.items()]
  return max(
      (
          1 + int(match[1]) if axis is None else shape[axis]
          for match, shape in found
          if match
      ),
      default=0,
  )


def _linear_tensors(
    shapes: Shapes, config: _upstream.TransformerConfig
) -> dict[str, tuple[Tensor, ...]]:
  """Returns the tensors of linears and of their clip bounds."""
  by_path: dict[str, list[_linears.Linear]] = {}
  for row in _linears.linears(config):
    if row.path in shapes:
      row = dataclasses.replace(row, shape=tuple(shapes[row.path]))
      by_path.setdefault(row.path, []).append(row)
  known: dict[str, tuple[Tensor, ...]] = {}
  for path, rows in by_path.items():
    live = [row for row in rows if row.live]
    if rows[0].is_routed:
      known[path] = (_experts(rows[0]),)
    else:
      known[path] = tuple(x for row in live for x in _matrices(row))
    for bound in _names.CLIP_BOUNDS:
      clip = f'{rows[0].module_path}.clip_{bound}'
      if clip in shapes:
        known[clip] = tuple(x for row in live for x in _bounds(row, bound))
  return known


def _experts(row: _linears.Linear) -> Tensor:
  """gate and up of all experts, or down."""
  experts, *_, hidden, width = row.shape
  if row.slot_axis is None:
    shape = (experts, width, hidden)
    return Tensor(
        name=row.hf_name,
        shape=shape,
        take=lambda leaf: leaf.swapaxes(1, 2),
        by_rows=True,
    )
  return Tensor(
      name=row.hf_name,
      shape=(experts, 2 * hidden, width),
      take=lambda leaf: leaf.reshape(-1, 2 * hidden, width),
      by_rows=True,
  )


def _matrices(row: _linears.Linear) -> list[Tensor]:
  """One `[out, in]`, or one per layer of a stacked leaf."""
  one = row.one_layer
  in_axes, out_axes = _weights.axes(one)
  order = (*out_axes, *in_axes)
  shape = (math.prod(row.out_shape), math.prod(row.in_shape))

  def take(leaf, index):
    layer = leaf if index is None else leaf[index]
    return _weights.part(layer, one).transpose(order).reshape(shape)

  indices = row.layers if row.stacked else (None,)
  return [
      Tensor(
          name=f'{name}.weight',
          shape=shape,
          take=lambda leaf, index=index: take(leaf, index),
      )
      for name, index in zip(row.hf_names, indices, strict=True)
  ]


def _bounds(row: _linears.Linear, bound: str) -> list[Tensor]:
  """A clip bound of a linear, shared by those that gemma packs with it."""
  names = [name.removesuffix('.linear') for name in row.hf_names]
  indices = row.layers if row.stacked else ((),)
  return [
      Tensor(
          name=f'{name}.{bound}',
          shape=(),
          take=lambda leaf, index=index: leaf[index],
      )
      for name, index in zip(names, indices, strict=True)
  ]


def _other_tensors(
    shapes: Shapes, config: _upstream.TransformerConfig
) -> dict[str, tuple[Tensor, ...]]:
  """Returns the tensors of all leaves that are not linears."""
  known = {
      path: _other(leaf, shapes[path])
      for path, leaf in _base_weights.other_leaves(config).items()
      if path in shapes
  }
  for layer, shared in enumerate(_upstream.shares_kv(config)):
    if shared:
      known[f'layer_{layer}.attn.key_norm.scale'] = ()
  known |= _kept(shapes, known)
  return known


def _kept(
    shapes: Shapes, known: Mapping[str, Any]
) -> dict[str, tuple[Tensor, ...]]:
  """Returns tensors of a tower that gemma has no leaf for, as they were read.

  12B's projection of audio: `_base_weights` names it after its tensor.
  """
  kept = {}
  for path, shape in shapes.items():
    encoder, _, name = path.partition('.')
    short = _hf_names.short(name)
    if path not in known and encoder == _hf_names.encoder_of(short):
      kept[path] = _one(short, shape, lambda leaf: leaf, by_rows=True)
  return kept


def _other(leaf: _leaves.Leaf, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
  """Returns the tensors of one leaf."""
  name, *_ = names = leaf.hf_tensors
  if leaf.stacked:
    return tuple(
        Tensor(name=name, shape=shape[1:], take=lambda leaf, i=i: leaf[i])
        for i, name in enumerate(names)
    )
  if leaf.is_kernel:
    *window, into, out = shape
    return _one(name, (out, into, *window), _kernel)
  if leaf.path == _names.PER_LAYER_EMBEDDINGS:
    vocab, layers, size = shape
    width = layers * size
    return _one(
        name,
        (vocab, width),
        lambda leaf: leaf.reshape(-1, width),
        by_rows=True,
    )
  if leaf.path == _names.POSITIONS:
    length, axes, width = shape
    return _one(name, (axes, length, width), lambda leaf: leaf.swapaxes(0, 1))
  return _one(name, shape, lambda leaf: leaf, by_rows=True)


def _one(name, shape, take, *, by_rows=False) -> tuple[Tensor, ...]:
  return (Tensor(name=name, shape=tuple(shape), take=take, by_rows=by_rows),)


def _kernel(leaf: np.ndarray) -> np.ndarray:
  return np.moveaxis(leaf, (-1, -2), (0, 1))
