"""A clipped linear with branches: inside both clips, as in Hugging Face.

`clip_out(W . clip_in(x) + branches(clip_in(x)))`. gemma's module clips within
its own call, where nothing can be added. So this module repeats its three
lines, on its own parameters.
https://github.com/google-deepmind/gemma/blob/main/gemma/gm/nn/gemma4/_layers.py
(`ClippedEinsum`, gemma 4.0.1 and 4.1.0)
"""

from collections.abc import Callable
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from gemma4_lora.gemma4 import _upstream
from gemma4_lora.nn.branches import _base


def apply(
    module: nn.Module,
    eqn: str,
    x: jax.Array,
    *,
    dtype: Any,
    branches: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
) -> jax.Array:
  """Returns the module's output, with branches added before the last clip.

  Args:
    module: A `ClippedEinsum` that has its parameters.
    eqn: Einsum of its input and its weight.
    x: Its input.
    dtype: Dtype of its weight, if that is quantised.
    branches: Returns what to add, given the clipped input and its product with
      the weight.

  Raises:
    ValueError: The parameters lack a clip bound.
  """
  bounds = _upstream.clip_bounds(module)
  x = jnp.clip(x, bounds['clip_input_min'], bounds['clip_input_max'])
  y = _base.product(module, eqn, x, dtype)
  if branches is not None:
    y += branches(x, y)
  return jnp.clip(y, bounds['clip_output_min'], bounds['clip_output_max'])
