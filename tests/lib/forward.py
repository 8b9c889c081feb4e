"""Forward passes, compiled once per model and shapes in a process."""

import functools
from typing import Any

from flax import linen as nn
import jax


@functools.partial(jax.jit, static_argnames='model')
def apply(model: nn.Module, params: Any, *args: Any, **kwargs: Any) -> Any:
  """Returns the model's output; arguments are arrays."""
  return model.apply({'params': params}, *args, **kwargs)


def logits(model: nn.Module, params: Any, tokens: Any) -> jax.Array:
  """Returns the logits of tokens."""
  return apply(model, params, tokens).logits
