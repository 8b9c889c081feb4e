"""Base weights of transformers, as gemma's leaves.

The tables of linears and other leaves give their names.
"""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import itertools
import math

from etils import epath
import numpy as np

from gemma4_lora.gemma4 import _hf_names
from gemma4_lora.gemma4 import _leaves
from gemma4_lora.gemma4 import _linears
from gemma4_lora.gemma4 import _names
from gemma4_lora.gemma4 import _upstream
from gemma4_lora.gemma4 import _weights
from gemma4_lora.hf.weights import _by_name
from gemma4_lora.hf.weights import _four_bit
from gemma4_lora.hf.weights import _mapped
from gemma4_lora.hf.weights import _structure
from gemma4_lora.hf.weights import _tensor_leaf

TensorLeaf = _tensor_leaf.TensorLeaf
Tensor = _tensor_leaf.Tensor

# How many axes the tensors of some leaves must have.
_AXES = {_names.PER_LAYER_EMBEDDINGS: 2, _names.POSITIONS: 3}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseWeights:
  """Gemma's leaves in a checkpoint of transformers.

  Attributes:
    leaves: Leaves by their paths. Tensors without a leaf of gemma keep their
      own names, below their tower if they are of one.
    named: The tensors.
    config: A config with the linears of the file.
  """

  leaves: Mapping[str, TensorLeaf]
  named: _by_name.ByName
  config: _upstream.TransformerConfig


def open_weights(
    path: epath.Path, *, names: Collection[str] | None = None, who: str
) -> BaseWeights:
  """Lists gemma's leaves in a checkpoint of transformers; reads no data.

  Args:
    path: A safetensors file, an index of several, or the folder of either.
    names: What the folder has, if that is known.
    who: The function that asks, for messages.

  Raises:
    FileNotFoundError: A file is not there.
    ValueError: A file is damaged, or not of Gemma 4.
  """
  listed = _mapped.list_tensors(path, names=names, who=who)
  unpacked = _four_bit.unpacked(listed, path=path, who=who)
  try:
    named = _by_name.by_name(unpacked)
    return _opened(named)
  except ValueError as e:
    raise ValueError(f'{who}: {path}: {e}') from e


def _opened(named: _by_name.ByName) -> BaseWeights:
  tensors = named.tensors
  config = _structure.config({k: v.shape for k, v in tensors.items()})
  leaves, used = {}, set()
  rows = _linears.linears(config)
  for names, leaf in itertools.chain(
      _linear_leaves(rows, tensors),
      _clips(rows, tensors),
      _other_leaves(config, tensors),
  ):
    used.update(names)
    if leaf is None:
      continue
    try:
      _tensor_leaf.common_dtype([x.dtype for x in leaf.tensors])
    except ValueError as e:
      raise ValueError(f'{", ".join(names[:4])}: {e}.') from None
    leaves[leaf.path] = leaf
  for short, tensor in tensors.items():
    if short not in used:
      name = named.full[short]
      encoder = _hf_names.encoder_of(short)
      path = f'{encoder}.{name}' if encoder else name
      leaves[path] = TensorLeaf(
          path=path, tensors=(tensor,), shape=tensor.shape, make=_first
      )
  return BaseWeights(leaves=leaves, named=named, config=config)


# Names of tensors, and their leaf; None if some of its tensors are missing.
_Made = Iterator[tuple[Sequence[str], TensorLeaf | None]]
_Tensors = _by_name.Tensors


def _linear_leaves(rows: Sequence[_linears.Linear], tensors: _Tensors) -> _Made:
  """Yields the weights of linears, with the names of their tensors."""
  by_path: dict[str, list[_linears.Linear]] = {}
  for row in rows:
    by_path.setdefault(row.path, []).append(row)
  for path, slots in by_path.items():
    experts = slots[0].is_routed
    ends = '' if experts else '.weight'
    names = [f'{name}{ends}' for row in slots for name in row.hf_names]
    if experts:
      names = names[:1]
    if not all(name in tensors for name in names):
      # k and v of KV-shared layers; or it is reported as missing.
      yield [name for name in names if name in tensors], None
      continue
    parts = tuple(tensors[name] for name in names)
    sized = [_sized(row, names[0], tensors[names[0]].shape) for row in slots]
    _check_alike(names, parts)
    make = _maker(sized)
    yield names, TensorLeaf(
        path=path, tensors=parts, shape=sized[0].shape, make=make
    )


def _sized(
    row: _linears.Linear, name: str, shape: tuple[int, ...]
) -> _linears.Linear:
  """Returns the row with the sizes of its tensor, `[*experts, out, in]`.

  If one side has several axes, the last is known (the width of a head), and the
  first follows.

  Raises:
    ValueError: The tensor has other axes, or a side that is no multiple.
  """
  sizes = list(row.shape)
  if len(shape) != (3 if row.is_routed else 2):
    raise ValueError(f'{name} has shape {shape}, and must be a matrix.')
  packed = 2 if row.is_routed and row.slot_axis else 1
  fan_out = shape[-2] // packed
  sides = [(row.out_axes, fan_out), (row.in_axes, shape[-1])]
  if row.is_routed:
    sides.append((row.batch_axes, shape[0]))
  for axes, total in sides:
    rest = math.prod(sizes[axis] for axis in axes[1:])
    if not rest or total % rest or shape[-2] % packed:
      raise ValueError(
          f'{name} has shape {shape}, and {total} is no multiple of {rest}.'
      )
    sizes[axes[0]] = total // rest
  return dataclasses.replace(row, shape=tuple(sizes))


def _check_alike(names: Sequence[str], tensors: Sequence[Tensor]) -> None:
  """Raises unless tensors that gemma packs in one leaf have one shape."""
  for name, tensor in zip(names, tensors, strict=True):
    if tensor.shape != tensors[0].shape:
      raise ValueError(
          f'{names[0]} has shape {tensors[0].shape}, and {name}'
          f' {tensor.shape}: gemma packs them in one leaf, and they must be of one'
          ' shape.'
      )


def _maker(
    rows: Sequence[_linears.Linear],
) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
  """Returns a function that packs the weights of transformers as gemma does."""
  row = rows[0]
  if row.is_routed and row.slot is not None:
    return lambda arrays: arrays[0].reshape(row.shape)
  if row.is_routed:
    return lambda arrays: arrays[0].swapaxes(1, 2)

  def make(arrays):
    step = len(arrays) // len(rows)  # Layers of a stacked weight.
    slots = [
        [_from_matrix(x, r) for x in arrays[i * step : (i + 1) * step]]
        for i, r in enumerate(rows)
    ]
    one = row.one_layer
    if one.slot_axis is None:
      layers = slots[0]
    else:
      layers = [
          _stack(parts, axis=one.slot_axis)
          for parts in zip(*slots, strict=True)
      ]
    return _stack(layers) if row.stacked else layers[0]

  return make


def _from_matrix(array: np.ndarray, row: _linears.Linear) -> np.ndarray:
  """Returns `[out, in]` as gemma's part of a weight."""
  row = row.one_layer
  in_axes, out_axes = _weights.axes(row)
  array = array.reshape(*row.out_shape, *row.in_shape)
  return array.transpose(np.argsort((*out_axes, *in_axes)).tolist())


def _clips(rows: Sequence[_linears.Linear], tensors: _Tensors) -> _Made:
  """Yields the clip bounds of linears: one for all that gemma packs in one."""
  by_module: dict[str, list[_linears.Linear]] = {}
  for row in rows:
    if row.hf_name.endswith('.linear'):
      by_module.setdefault(row.module_path, []).append(row)
  for module, slots in by_module.items():
    for bound in _names.CLIP_BOUNDS:
      names = [
          f'{name.removesuffix(".linear")}.{bound}'
          for row in slots
          for name in row.hf_names
      ]
      if not all(name in tensors for name in names):
        yield [name for name in names if name in tensors], None
        continue
      for name in names:
        if math.prod(tensors[name].shape) != 1:
          raise ValueError(
              f'{name} has shape {tensors[name].shape}, and must be one number.'
          )
      stacked = slots[0].stacked
      path = f'{module}.clip_{bound}'
      yield names, TensorLeaf(
          path=path,
          tensors=tuple(tensors[name] for name in names),
          shape=(len(names) // len(slots),) if stacked else (),
          make=_clip_maker(path, len(slots), stacked=stacked),
      )


def _clip_maker(
    path: str, num_slots: int, *, stacked: bool
) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
  def make(arrays):
    bounds = np.stack(arrays).reshape(num_slots, -1)
    if (bounds != bounds[0]).any():
      raise ValueError(
          f'The checkpoint clips what {path} packs at different bounds, and'
          f' gemma has one for all: {bounds.tolist()}.'
      )
    return bounds[0] if stacked else bounds[0, 0]

  return make


def _other_leaves(config, tensors: _Tensors) -> _Made:
  """Yields all leaves that are not linears."""
  for path, leaf in other_leaves(config).items():
    names = leaf.hf_tensors
    if all(name in tensors for name in names):
      parts = tuple(tensors[name] for name in names)
      _check_alike(names, parts)
      shape, make = _shape_and_maker(leaf, parts[0].shape, len(parts), config)
      yield names, TensorLeaf(path=path, tensors=parts, shape=shape, make=make)
    else:
      yield [name for name in names if name in tensors], None


def other_leaves(
    config: _upstream.TransformerConfig,
) -> dict[str, _leaves.Leaf]:
  """Returns all leaves that are not linears, by their paths.

  Args:
    config: The model's config. A vision tower may have fewer leaves.
  """
  if isinstance(config.vision_encoder, _upstream.VisionEncoder):
    vision = dataclasses.replace(
        config.vision_encoder, standardize_embeddings=True
    )
    config = dataclasses.replace(config, vision_encoder=vision)
  return {leaf.path: leaf for leaf in _leaves.leaves(config)}


def _shape_and_maker(
    leaf: _leaves.Leaf, shape: tuple[int, ...], count: int, config
) -> tuple[tuple[int, ...], Callable[[Sequence[np.ndarray]], np.ndarray]]:
  """Returns the shape of a leaf, and a function that makes it from tensors."""
  if leaf.stacked:
    return (count, *shape), _stack
  least = 2 * leaf.is_kernel or _AXES.get(leaf.path, 0)
  if len(shape) < least or (leaf.path in _AXES and len(shape) != least):
    raise ValueError(
        f'{leaf.hf_tensors[0]} has shape {shape}, and must have {least} axes.'
    )
  if leaf.is_kernel:
    out, into, *window = shape
    return (*window, into, out), _kernel
  if leaf.path == _names.PER_LAYER_EMBEDDINGS:
    vocab, size = shape
    if size % config.num_layers:
      raise ValueError(
          f'{leaf.hf_tensors[0]} has shape {shape}, and {size} is no multiple of'
          f' {config.num_layers} layers.'
      )
    new = (vocab, config.num_layers, size // config.num_layers)
    return new, lambda arrays: arrays[0].reshape(new)
  if leaf.path == _names.POSITIONS:
    axes, length, width = shape
    return (length, axes, width), lambda arrays: arrays[0].swapaxes(0, 1)
  return shape, _first


def _stack(arrays: Sequence[np.ndarray], axis: int = 0) -> np.ndarray:
  """`np.stack`, of integers: NumPy copies bfloat16 one number at a time.

  Args:
    arrays: Arrays of one dtype.
    axis: The new axis.
  """
  dtype = arrays[0].dtype
  integers = [x.view(f'u{dtype.itemsize}') for x in arrays]
  return np.stack(integers, axis).view(dtype)


def _first(arrays: Sequence[np.ndarray]) -> np.ndarray:
  return arrays[0]


def _kernel(arrays: Sequence[np.ndarray]) -> np.ndarray:
  return np.moveaxis(arrays[0], (0, 1), (-1, -2))
