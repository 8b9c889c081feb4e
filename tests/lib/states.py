"""States to restore into, and how to compare them; no model is compiled."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from kauldron import kd
import numpy as np

from gemma4_lora import _trees
from gemma4_lora import g4
from gemma4_lora.gemma4 import _sizes
from gemma4_lora.testing import _checkpoints
from tests.lib import models
from tests.lib import random_params

# 12B has 31B's leaves.
VARIANTS = tuple(name for name in _sizes.NAMES if name != 'Gemma4_12B')
LAYOUTS = (
    'nested',
    'nested_bare',
    'flat',
    'stacked',
    'kauldron',
    'kauldron_w',
)


@functools.cache
def model(variant: str, *, text_only: bool = True) -> Any:
  return models.base(variant, cut=models.whole, text_only=text_only)


@functools.cache
def _shapes(variant: str, text_only: bool, lora: str | None) -> Any:
  base = model(variant, text_only=text_only)
  if lora == 'ours':
    return random_params.shapes(g4.nn.LoRA(rank=4, model=base))
  shapes = _checkpoints.abstract_params(base)
  if lora == 'head':
    return _with_head_lora(shapes)
  return shapes


def _with_head_lora(tree: Any) -> Any:
  """Adds LoRA leaves where gemma's git HEAD has them."""
  pair = {
      'a': jax.ShapeDtypeStruct((3, 2), jnp.bfloat16),
      'b': jax.ShapeDtypeStruct((2, 5), jnp.bfloat16),
  }
  out = {k: _with_head_lora(v) for k, v in tree.items() if hasattr(v, 'items')}
  out = {k: out.get(k, v) for k, v in tree.items()}
  if 'w' in tree:
    out['_LoRAEinsum_0'] = {'lora': dict(pair)}
  for name in ('gating_einsum', 'linear'):
    if name in tree and not hasattr(tree[name], 'items'):
      out[f'_LoRAEinsum_{name}'] = {'lora': dict(pair)}
  return out


def make_state(
    variant: str,
    *,
    text_only: bool = True,
    lora: str | None = None,
    seed: int = 99,
    sharding: Any = None,
) -> kd.train.TrainState:
  """Returns a state of random values.

  Args:
    variant: Of the tiny models.
    text_only: Of the model.
    lora: 'ours', 'head' (gemma's git HEAD) or `None`.
    seed: Of the values.
    sharding: How to shard the params: a Kauldron sharding.
  """
  shapes = _shapes(variant, text_only, lora)
  if sharding is None:
    return wrap(random_params.as_released(shapes, seed=seed))
  # From NumPy: jax compiles a program for each shape that it divides.
  values = _checkpoints.random_params(shapes, seed=seed)
  return wrap(jax.device_put(values, sharding(values)))


def wrap(params: Any) -> kd.train.TrainState:
  return kd.train.TrainState(
      step=jnp.asarray(7), params=params, opt_state=None, collections={}
  )


def abstract(state: Any) -> Any:
  """Replaces the base leaves by shapes."""

  def to_shape(keys, x):
    if _trees.is_lora(_trees.key_path(keys)):
      return x
    return jax.ShapeDtypeStruct(x.shape, x.dtype)

  return state.replace(
      params=jax.tree_util.tree_map_with_path(to_shape, state.params)
  )


def specs(state: Any) -> dict[Any, Any]:
  return {
      k: (type(x).__name__, x.shape, x.dtype, getattr(x, 'sharding', None))
      for k, x in _trees.flatten(state).items()
  }


def lora_leaves(state: Any) -> dict[Any, Any]:
  flat = _trees.flatten(state.params)
  return {k: v for k, v in flat.items() if _trees.is_lora(k)}


def base_leaves(params: Any) -> dict[Any, Any]:
  flat = _trees.flatten(params)
  return {k: np.asarray(v) for k, v in flat.items() if not _trees.is_lora(k)}


def differing(params: Any, expected: Any) -> list[str]:
  """Names of base leaves that are not bitwise what they should be."""
  got, want = base_leaves(params), base_leaves(expected)
  assert got.keys() == want.keys()
  return [
      _trees.join(k)
      for k in got
      if not (
          got[k].dtype == want[k].dtype
          and got[k].tobytes() == want[k].tobytes()
      )
  ]


def assert_usable(state: Any) -> None:
  """Every leaf can still be read."""
  for leaf in jax.tree.leaves(state):
    if not isinstance(leaf, jax.ShapeDtypeStruct):
      np.asarray(leaf)
