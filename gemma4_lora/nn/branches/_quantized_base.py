"""Calls of a model whose base is quantised, by Flax's interceptor.

It must be the innermost: LoRA's interceptors are around it.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from gemma4_lora import _trees
from gemma4_lora.gemma4 import _upstream
from gemma4_lora.gemma4.forward import _embedder
from gemma4_lora.nn.branches import _base
from gemma4_lora.nn.branches import _clipped
from gemma4_lora.nn.branches import _experts
from gemma4_lora.quant import _arrays
from gemma4_lora.targets import _resolve


@dataclasses.dataclass(frozen=True)
class _Table:
  """A quantised table, as `_embedder.Table`.

  Attributes:
    value: Codes and scales.
    dtype: The dtype of dequantised weights.
  """

  value: Mapping[str, Any]
  dtype: Any

  def take(self, rows: jax.Array) -> jax.Array:
    return _arrays.take(self.value, rows, self.dtype)

  def einsum(self, eqn: str, x: jax.Array) -> jax.Array:
    return _base.einsum(eqn, x, self.value, self.dtype)


class Quantized:
  """Interceptor that reads quantised weights where gemma reads arrays.

  Attributes:
    key: Says all that the result depends on.
  """

  def __init__(self, dtype: Any):
    """Initialises.

    Args:
      dtype: Dtype of dequantised weights.
    """
    self.key = f'quantized {jnp.dtype(dtype)}'
    self._dtype = dtype

  def __call__(self, next_fun, args, kwargs, context):
    module = context.module
    if module.scope is None or module.is_initializing():
      return next_fun(*args, **kwargs)
    if context.method_name == '__call__' and isinstance(
        module, _upstream.LINEARS
    ):
      if _base.is_quantized(module):
        return self._linear(module, *_upstream.einsum_of(module, args, kwargs))
    elif method := _embedder.method_of(module, context.method_name):
      table = module.get_variable('params', method.table)
      if _arrays.is_quantized(table):
        table = _Table(table, self._dtype)
        return method.run(module, table, *args, **kwargs)
    elif context.method_name == _upstream.EXPERTS_METHOD:
      if _experts.is_quantized(module):
        return _experts.run(module, *args, dtype=self._dtype, **kwargs)
    return next_fun(*args, **kwargs)

  def _linear(self, module: nn.Module, eqn: str, x: jax.Array) -> jax.Array:
    """Returns what a linear does."""
    if isinstance(module, _upstream.ClippedEinsum):
      return _clipped.apply(module, eqn, x, dtype=self._dtype)
    y = _base.product(module, eqn, x, self._dtype)
    bias = module.get_variable('params', 'bias')
    return y if bias is None else y + bias.astype(y.dtype)


def check(params: Mapping[str, Any], encodings: Mapping[str, Any]) -> None:
  """Raises unless the quantised leaves are those that the model reads as
  quantised.

  Args:
    params: Nested.
    encodings: How the model reads its base, by dotted path.

  Raises:
    ValueError: A part is quantised that should not be, or in another format.
  """
  found = {
      path: _arrays.encoding_of(value)
      for path, value in quantized_nodes(params)
  }
  if found == encodings:
    return
  paths = sorted(found.keys() | encodings.keys())
  wrong = [x for x in paths if found.get(x) != encodings.get(x)]
  none = 'not quantised'
  raise ValueError(
      f'{len(wrong)} leaves of the base are not as'
      ' g4.nn.LoRA(quantize=...) has them:\n'
      + '\n'.join(
          f'  {x}: model {encodings.get(x, none)}, parameters'
          f' {found.get(x, none)}'
          for x in wrong[:4]
      )
      + '\nGive the model the quantize= with which the parameters were made, or'
      ' restore them into this model.'
  )


def quantized_nodes(
    params: Mapping[str, Any], *prefix: str
) -> Iterator[tuple[str, Mapping[str, Any]]]:
  """Yields the quantised arrays of nested parameters, by dotted path."""
  for key, value in params.items():
    if _arrays.is_quantized(value):
      yield '.'.join((*prefix, key)), value
    elif isinstance(value, Mapping):
      yield from quantized_nodes(value, *prefix, key)


def make(
    module: nn.Module,
    encodings: Mapping[str, Any],
    adapted: Sequence[_resolve.Adapted],
    *,
    dtype: Any,
) -> None:
  """Quantises the base on `init`, and sets the LoRA leaves that start from it.

  Args:
    module: The model, its own parameters made.
    encodings: How, by dotted path.
    adapted: What LoRA adapts.
    dtype: Dtype of dequantised weights.

  Raises:
    ValueError: `init` has not made a leaf that is to be quantised.
  """
  params = quantize(module.variables['params'], encodings)
  for linear in adapted:
    row = linear.row
    for leaf in linear.variant.own:
      if leaf.from_base and row.path in encodings:
        weight = _arrays.dense(_trees.get(params, row.path), dtype)
        _trees.get(params, row.lora_path)[leaf.name] = leaf.start(weight, row)
  scope: Any = module.scope
  for top in {path.split('.')[0] for path in encodings}:
    scope.put_variable('params', top, params[top])


def quantize(
    params: Mapping[str, Any], encodings: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns parameters with a quantised base.

  Args:
    params: Nested.
    encodings: How, by dotted path.

  Raises:
    ValueError: A leaf is missing.
  """
  new = _copy(params)
  for path, encoding in encodings.items():
    *scopes, name = path.split('.')
    node = new
    for key in scopes:
      node = node.get(key, {})
    if name not in node:
      raise ValueError(
          f'quantize=: the parameters have no {path}. gemma makes some of the'
          ' towers only when init is given their input. Give it images= and'
          ' audio=, or name parts without them.'
      )
    node[name] = _arrays.quantize(node[name], encoding)
  return new


def dequantized(params: Any, dtype: Any) -> Any:
  """Returns parameters with arrays for what is quantised.

  Args:
    params: Nested.
    dtype: Dtype of dequantised weights.
  """
  return jax.tree.map(
      lambda x: _arrays.dense(x, dtype), params, is_leaf=_arrays.is_quantized
  )


def _copy(node: Any) -> Any:
  """Returns new nested dicts."""
  if not isinstance(node, Mapping):
    return node
  return {key: _copy(value) for key, value in node.items()}
