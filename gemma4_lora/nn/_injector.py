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
from gemma4_lora import targets
from gemma4_lora.nn import _clipped
from gemma4_lora.nn import _low_rank


@dataclasses.dataclass(frozen=True, kw_only=True)
class Injector:
  """Interceptor that adds the branches, and makes A and B on init.

  Attributes:
    adapted: The adapted projections.
    use_rslora: How a branch's scale follows from alpha and rank.
    use_dropout: Whether the model is training.
    dtype: Of new A and B.
    root: Path of the model within the outermost module: rows are relative to
      it.
  """

  adapted: Sequence[targets.Adapted]
  use_rslora: bool
  use_dropout: bool
  dtype: Any
  root: tuple[str, ...]

  @property
  def key(self) -> str:
    """Says all that the branches depend on."""
    return (
        f'lora rslora={self.use_rslora} dropout={self.use_dropout}'
        f' dtype={jnp.dtype(self.dtype)} '
        + ','.join(
            f'{x.row.name}:{x.rank}:{x.alpha!r}:{x.dropout!r}'
            for x in self.adapted
        )
    )

  @functools.cached_property
  def _by_path(self) -> dict[str, list[targets.Adapted]]:
    """The adapted projections by the path of their weight."""
    grouped = {}
    for linear in self.adapted:
      grouped.setdefault(linear.row.path, []).append(linear)
    return grouped

  def __call__(self, next_fun, args, kwargs, context):
    module = context.module
    if context.method_name != '__call__' or not isinstance(
        module, _gemma4.LINEARS
    ):
      return next_fun(*args, **kwargs)
    # The MLP's linears share its scope: their own path is `layer_0/mlp`.
    scope = module.path[len(self.root) :]
    path = '.'.join((*scope, _gemma4.weight_name(module)))
    adapted = self._by_path.get(path)
    if adapted is None:
      return next_fun(*args, **kwargs)
    eqn, x = _gemma4.einsum_of(module, args, kwargs)
    if not isinstance(module, _gemma4.ClippedEinsum):
      return next_fun(*args, **kwargs) + self._branches(module, adapted, eqn, x)
    if module.is_initializing():
      next_fun(*args, **kwargs)  # Makes weight and bounds.
    branches = functools.partial(self._branches, module, adapted, eqn)
    return _clipped.apply(module, eqn, x, branches=branches)

  def _branches(
      self,
      module: nn.Module,
      adapted: Sequence[targets.Adapted],
      eqn: str,
      x: jax.Array,
  ) -> jax.Array:
    """Returns what all projections of one weight add to its output."""
    row = adapted[0].row.one_layer
    if row.slot_axis is None:  # The weight is one projection.
      (linear,) = adapted
      return self._branch(module, linear, eqn, x)
    slot_axis = row.slot_axis
    return _low_rank.pack(
        {
            linear.row.slot: self._branch(module, linear, eqn, x)
            for linear in adapted
        },
        num_slots=row.shape[slot_axis],
        axis=_low_rank.packing_axis(eqn, slot_axis),
    )

  def _branch(
      self, module: nn.Module, linear: targets.Adapted, eqn: str, x: jax.Array
  ) -> jax.Array:
    """Returns what one projection adds."""
    scale = linear.scale(use_rslora=self.use_rslora)
    scale *= _gemma4.weight_scale(module)
    a, b = self._params(module, linear)
    x = self._drop(module, linear, x)
    return _low_rank.apply(eqn, linear.row.one_layer, x, a, b, scale=scale)

  def _params(
      self, module: nn.Module, linear: targets.Adapted
  ) -> tuple[jax.Array, jax.Array]:
    """Returns A and B, made on init.

    They are made on sub-scopes: gemma patches `nn.Module.param`, which would
    cast them to the base's dtype.
    """
    row = linear.row.one_layer
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
    a_shape, b_shape = row.lora_shapes(linear.rank)
    fan_in = math.prod(row.in_shape)
    a = scope.param('a', _uniform(fan_in**-0.5), a_shape, self.dtype)
    b = scope.param('b', nn.initializers.zeros, b_shape, self.dtype)
    return a, b

  def _drop(
      self, module: nn.Module, linear: targets.Adapted, x: jax.Array
  ) -> jax.Array:
    """Applies dropout to a branch's input."""
    if not self.use_dropout or not linear.dropout:
      return x
    kept = 1 - linear.dropout
    keep = jax.random.bernoulli(module.make_rng('dropout'), kept, x.shape)
    return jnp.where(keep, x / kept, 0)


def _uniform(bound: float) -> nn.initializers.Initializer:
  """`U(-bound, bound)`."""

  def init(key, shape, dtype):
    return jax.random.uniform(key, shape, dtype, minval=-bound, maxval=bound)

  return init
