"""gemma's `Embedder` on tables in any form, quantised or not.

Written after gemma 4.0.1, the same in 4.1.0:
https://github.com/google-deepmind/gemma/blob/main/gemma/gm/nn/gemma4/_modules.py
"""

from collections.abc import Callable
import dataclasses
from typing import Any
from typing import Protocol

from flax import linen as nn
import jax
import jax.numpy as jnp

from gemma4_lora.gemma4 import _names
from gemma4_lora.gemma4 import _upstream

_LOGITS = 'decode'


class Table(Protocol):
  """A table, of arrays or quantised."""

  def take(self, rows: jax.Array) -> jax.Array:
    """Returns rows of the table."""
    ...

  def einsum(self, eqn: str, x: jax.Array) -> jax.Array:
    """Returns the product of `x` and the table."""
    ...


@dataclasses.dataclass(frozen=True)
class Method:
  """A method that reads a table.

  Attributes:
    table: Name of the parameter.
    run: Computes the method, given the module, the table and its arguments.
  """

  table: str
  run: Callable[..., jax.Array]


def method_of(module: nn.Module, method_name: str) -> Method | None:
  """Returns the method if it is one of an embedder that reads a table."""
  if not isinstance(module, _upstream.Embedder):
    return None
  return _METHODS.get(method_name)


def makes_logits(module: nn.Module, method_name: str) -> bool:
  """Whether this is the method that makes logits from hidden states."""
  return isinstance(module, _upstream.Embedder) and method_name == _LOGITS


def in_text_width(module: Any, images: jax.Array) -> jax.Array:
  """Returns `[B, 1, T, D]`: the vision tower's output, as the text reads it.

  Args:
    module: The whole model.
    images: Output of the vision tower, `[B, 1, T, V]`.
  """
  return module.embedder.encode_vision(images)


def _encode(module, table: Table, x):
  return _scaled(table.take(x), module.embed_dim)


def _decode(module, table: Table, x):
  del module
  return table.einsum('...d,vd->...v', x)


def _encode_logits(module, table: Table, x):
  probs = jax.nn.softmax(x.astype(jnp.float32), axis=-1).astype(x.dtype)
  return _scaled(table.einsum('...v,vd->...d', probs), module.embed_dim)


def _encode_per_layer_input(
    module, table: Table, x, t, ignore_ple_tokens=False
):
  x = module.per_layer_model_projection('...td,dnp->...tnp', x)
  x = module.per_layer_projection_norm(x)
  if ignore_ple_tokens:
    return x
  # The table lacks some tokens: they are read as token 0.
  is_known = (t >= 0) & (t < module.vocab_size)
  rows = table.take(jnp.where(is_known, t, 0))
  rows = _scaled(rows, module.per_layer_input_dim)
  return (x + rows) * jax.lax.rsqrt(2.0).astype(x.dtype)


def _scaled(rows: jax.Array, width: int) -> jax.Array:
  return rows * jnp.sqrt(width).astype(rows.dtype)


def _last(path: str) -> str:
  return path.rpartition('.')[2]


_METHODS = {
    'encode': Method(_last(_names.EMBEDDING), _encode),
    _LOGITS: Method(_last(_names.EMBEDDING), _decode),
    'encode_logits': Method(_last(_names.EMBEDDING), _encode_logits),
    'encode_per_layer_input': Method(
        _last(_names.PER_LAYER_EMBEDDINGS), _encode_per_layer_input
    ),
}
