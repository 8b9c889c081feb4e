"""Adds the branches inside the linears' own calls, by Flax's interceptor."""

from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from gemma4_lora import _gemma4
from gemma4_lora import _linears
from gemma4_lora.nn import _low_rank


@dataclasses.dataclass(frozen=True, kw_only=True)
class Injector:
  """Interceptor that adds the branches, and makes A and B on init.

  Attributes:
    rows: The adapted projections.
    rank: Of the branches.
    scale: Of the branches.
    dropout: Rate, 0 when not training.
    dtype: Of new A and B.
    root: Path of the model within the outermost module: rows are relative to
      it.
  """

  rows: Sequence[_linears.Linear]
  rank: int
  scale: float
  dropout: float
  dtype: Any
  root: tuple[str, ...]

  @property
  def key(self) -> str:
    """Says all that the branches depend on."""
    names = ','.join(row.name for row in self.rows)
    return (
        f'lora rank={self.rank} scale={self.scale!r} dropout={self.dropout!r}'
        f' dtype={jnp.dtype(self.dtype)} rows={names}'
    )

  @functools.cached_property
  def _by_path(self) -> dict[str, list[_linears.Linear]]:
    """The rows by the path of their weight."""
    grouped = {}
    for row in self.rows:
      grouped.setdefault(row.path, []).append(row)
    return grouped

  def __call__(self, next_fun, args, kwargs, context):
    module = context.module
    output = next_fun(*args, **kwargs)
    if context.method_name != '__call__' or not isinstance(
        module, _gemma4.EINSUMS
    ):
      return output
    # The MLP's linears share its scope: their own path is `layer_0/mlp`.
    path = (*module.path[len(self.root) :], module.weight_name)
    rows = self._by_path.get('.'.join(path))
    if rows is None:
      return output
    return output + self._branches(module, rows, *args, **kwargs)

  def _branches(
      self,
      module: nn.Module,
      rows: Sequence[_linears.Linear],
      eqn: str,
      x: jax.Array,
  ) -> jax.Array:
    """Returns what all projections of one weight add to its output."""
    slot_axis = rows[0].slot_axis
    if slot_axis is None:  # The weight is one projection.
      (row,) = rows
      return self._branch(module, row, eqn, x)
    return _low_rank.pack(
        {row.slot: self._branch(module, row, eqn, x) for row in rows},
        num_slots=rows[0].shape[slot_axis],
        axis=_low_rank.packing_axis(eqn, slot_axis),
    )

  def _branch(
      self, module: nn.Module, row: _linears.Linear, eqn: str, x: jax.Array
  ) -> jax.Array:
    """Returns what one projection adds."""
    scale = self.scale
    if module.w_scale is not None:  # The base multiplies its weight by it.
      scale *= module.w_scale
    a, b = self._params(module, row)
    return _low_rank.apply(eqn, row, self._drop(module, x), a, b, scale=scale)

  def _params(
      self, module: nn.Module, row: _linears.Linear
  ) -> tuple[jax.Array, jax.Array]:
    """Returns A and B, made on init.

    They are made on sub-scopes: gemma patches `nn.Module.param`, which would
    cast them to the base's dtype.
    """
    scope: Any = module.scope
    for name in ('lora', row.projection):
      scope = scope.push(name, reuse=True)
    # Kauldron applies with every collection mutable: flax would quietly draw
    # new leaves at each step.
    if not module.is_initializing() and not scope.has_variable('params', 'a'):
      raise ValueError(
          f'The parameters have no LoRA leaf {row.lora_path}.a, which'
          ' g4.nn.LoRA reads. Were they made by this model.init, with the same'
          ' targets?'
      )
    a_shape, b_shape = row.lora_shapes(self.rank)
    fan_in = math.prod(row.in_shape)
    a = scope.param('a', _uniform(fan_in**-0.5), a_shape, self.dtype)
    b = scope.param('b', nn.initializers.zeros, b_shape, self.dtype)
    return a, b

  def _drop(self, module: nn.Module, x: jax.Array) -> jax.Array:
    """Applies dropout to a branch's input."""
    if not self.dropout:
      return x
    keep = jax.random.bernoulli(
        module.make_rng('dropout'), 1 - self.dropout, x.shape
    )
    return jnp.where(keep, x / (1 - self.dropout), 0)


def _uniform(bound: float) -> nn.initializers.Initializer:
  """`U(-bound, bound)`."""

  def init(key, shape, dtype):
    return jax.random.uniform(key, shape, dtype, minval=-bound, maxval=bound)

  return init
