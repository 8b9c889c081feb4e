"""Random parameters of models, without compiling `model.init`.

Each function draws them for another purpose; all give no leaf a trivial value.
Shapes are traced once per process. Arrays are new in each call, since a
training step may overwrite them.
"""

from collections.abc import Mapping
import functools
from typing import Any

from flax import linen as nn
from flax import traverse_util
import jax
import numpy as np

from gemma4_lora import g4
from gemma4_lora.gemma4 import _upstream
from gemma4_lora.nn.branches import _pending
from gemma4_lora.testing import _checkpoints


def shapes(model: nn.Module) -> dict[str, Any]:
  """Returns shapes and dtypes of the parameters that text uses."""
  if not isinstance(model, g4.nn.LoRA) or model.quantize:
    return _traced(model, jax.config.jax_enable_x64)
  # Not traced for each setting of LoRA, which would take a third of the suite's
  # time: `tests/nn/lora_test.py` compares these leaves with those of `init`.
  base = traverse_util.flatten_dict(shapes(model.model), sep='.')
  owners = {path.rpartition('.')[0] for path in base} | set(base)
  leaves = {
      path: jax.ShapeDtypeStruct(shape, model.dtype)
      for path, shape in model.lora_shapes.items()
      if path.partition('.lora.')[0] in owners  # No towers: text alone.
  }
  return traverse_util.unflatten_dict(base | leaves, sep='.')


@functools.cache
def _traced(model: nn.Module, _: bool) -> dict[str, Any]:
  tokens = jax.ShapeDtypeStruct((1, 4), np.int32)
  return jax.eval_shape(model.init, jax.random.key(0), tokens)['params']


def make(model: nn.Module, *, seed: int = 0) -> dict[str, Any]:
  """Returns scales about 1, and matrices, A and B of one size: 0.2."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(functools.partial(_leaf, rng), shapes(model))


# Largest level of codes, by their dtype: uint4 is NF4's.
_LEVELS = {'uint4': 1, 'int4': 8, 'int8': 127}


def quantized(model: g4.nn.LoRA, *, seed: int = 0) -> dict[str, Any]:
  """Returns parameters of the same sizes, whose codes and scales are random.

  No weight was quantised to them, which would be a program for each shape.
  """
  rng = np.random.default_rng(seed)

  def draw(node):
    if not isinstance(node, Mapping):
      return _leaf(rng, node)
    if g4.quant.is_quantized(node):
      return _codes_and_scales(rng, node, size=0.3)
    return {key: draw(value) for key, value in node.items()}

  return draw(shapes(model))


def _leaf(rng: np.random.Generator, x: Any) -> jax.Array:
  offset = 1.0 if x.ndim < 2 else 0.0
  value = offset + 0.2 * rng.standard_normal(x.shape, np.float32)
  return on_device(value, x.dtype)


def on_device(value: np.ndarray, dtype: Any = None) -> jax.Array:
  """Returns an array of its own, without a program for each shape.

  `jnp.asarray` compiles two: to convert it and to copy it.

  Args:
    value: In NumPy. It is copied: what trains overwrites its parameters.
    dtype: If another one.
  """
  return jax.device_put(np.array(value, dtype))


def _codes_and_scales(
    rng: np.random.Generator, node: Mapping[str, Any], *, size: float
) -> dict[str, Any]:
  """Returns a quantised array whose largest entries are of that size."""
  (name,) = node.keys() - {'scales', 'offset'}
  codes, scales = node[name], node['scales']
  levels = _LEVELS[codes.dtype.name]
  low = 0 if codes.dtype.name == 'uint4' else -levels
  number = 255 if levels == 127 else 16
  drawn = rng.integers(low, low + number, codes.shape)
  out = {name: on_device(drawn, codes.dtype)}
  scale = size / levels
  if isinstance(scales, Mapping):  # Quantised around their mean.
    out['scales'] = _codes_and_scales(rng, scales, size=scale / 2)
    offset = scales['offset']
    mean = np.full(offset.shape, scale)
    out['scales']['offset'] = on_device(mean, offset.dtype)
  else:
    drawn = scale * rng.uniform(0.5, 1.5, scales.shape)
    out['scales'] = on_device(drawn, scales.dtype)
  return out


def like_init(model: nn.Module) -> dict[str, Any]:
  """Returns sizes as `model.init` gives them, and B as if it was trained.

  With those of `make`, the model's own float32 error is larger than 1e-5.
  """

  def scale(path, x):
    if x.ndim < 2:
      return x
    is_b = path[-1].key == 'b'
    dtype, x = x.dtype, np.asarray(x)
    x = x / 4 if is_b else 5 * x * np.prod(x.shape[:-1]) ** -0.5
    return on_device(x, dtype)

  return jax.tree_util.tree_map_with_path(scale, make(model))


def pending(params: Any) -> Any:
  """Returns parameters whose A and B wait for the base, as `init` leaves them.

  Args:
    params: Nested.
  """
  return jax.tree_util.tree_map_with_path(
      lambda keys, x: on_device(np.full(x.shape, _pending.fill((), x.dtype)))
      if keys[-1].key in ('a', 'b')
      else x,
      params,
  )


def with_towers(model: nn.Module) -> dict[str, Any]:
  """Returns values as of a random checkpoint; clip bounds are about 3."""
  return as_released(_traced_with_towers(model))


@functools.cache
def _traced_with_towers(model: nn.Module) -> dict[str, Any]:
  return _upstream.abstract_params(model)


def as_released(tree: Any, *, seed: int = 0) -> dict[str, Any]:
  """Returns values as of a random checkpoint, in a structure of shapes."""
  params = _checkpoints.random_params(tree, seed=seed)
  return jax.tree.map(on_device, params)


def lora(model: g4.nn.LoRA, *, seed: int = 0) -> dict[str, Any]:
  """Returns the LoRA leaves alone, nested, in NumPy; scales are about 1."""
  rng = np.random.default_rng(seed)
  norms = {part.path for part in model.saved if part.row.group == 'norms'}
  leaves = {}
  for path, shape in model.lora_shapes.items():
    if path in norms or path.endswith('.m'):
      leaf = rng.uniform(0.8, 1.2, shape)
    else:
      leaf = rng.normal(0, 0.1 if path.endswith('.b') else 0.2, shape)
    leaves[path] = leaf.astype(np.float32)
  return traverse_util.unflatten_dict(leaves, sep='.')
