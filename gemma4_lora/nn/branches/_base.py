"""A linear without its branches: the product of its input and its weight,
quantised or not.

Where the weight is quantised, only codes and scales are kept for the backward
pass, which dequantises once more: a dequantised weight is dropped after its
product.
"""

from collections.abc import Callable
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from gemma4_lora.gemma4 import _upstream
from gemma4_lora.quant import _arrays


def is_quantized(module: nn.Module) -> bool:
  """Whether the weight of a linear, one of `_upstream.LINEARS`, is quantised."""
  return _arrays.is_quantized(_upstream.weight(module))


def weight(module: nn.Module, dtype: Any) -> jax.Array:
  """Returns the weight of a linear, once its call has made it.

  Args:
    module: One of `_upstream.LINEARS`.
    dtype: The weight's dtype, where it is quantised.
  """
  return _arrays.dense(_upstream.weight(module), dtype)


def product(module: nn.Module, eqn: str, x: jax.Array, dtype: Any) -> jax.Array:
  """Returns the product of a linear's input and its weight, without a bias.

  Args:
    module: One of `_upstream.LINEARS`.
    eqn: Einsum of its input and its weight.
    x: Its input.
    dtype: The weight's dtype, where it is quantised.
  """
  value, scale = _upstream.weight(module), _upstream.weight_scale(module)
  if not _arrays.is_quantized(value):
    return jnp.einsum(eqn, x, value * scale)
  return einsum(eqn, x, value, dtype, scale=scale)


def einsum(
    eqn: str, x: jax.Array, value: Any, dtype: Any, *, scale: float = 1.0
) -> jax.Array:
  """Returns the einsum of an input and a quantised array.

  Args:
    eqn: Einsum of the input and the array.
    x: The input.
    value: The quantised array.
    dtype: The array's dtype.
    scale: What the array is multiplied by.
  """

  def apply(x, value):
    array = _arrays.dequantize(value, dtype)
    # The program would contain a product with 1.
    return jnp.einsum(eqn, x, array if scale == 1 else array * scale)

  return linear(apply, x, value)


def linear(
    apply: Callable[[jax.Array, Any], jax.Array],
    x: jax.Array,
    value: Any,
    *,
    transposed: Callable[[Any, jax.Array], jax.Array] | None = None,
) -> jax.Array:
  """Returns a function of an input and quantised arrays; it is linear in the
  input.

  The arrays have no gradient.

  Args:
    apply: Function of the input and the arrays.
    x: The input.
    value: The arrays.
    transposed: Computes the gradient to the input from the arrays and the
      gradient to the result. None: jax's.
  """
  like = jax.ShapeDtypeStruct(x.shape, x.dtype)

  def backward(value, gradient):
    if transposed is not None:
      return transposed(value, gradient), None
    transpose = jax.linear_transpose(lambda x: apply(x, value), like)
    return (*transpose(gradient), None)

  function = jax.custom_vjp(apply)
  function.defvjp(lambda x, value: (apply(x, value), value), backward)
  return function(x, value)
