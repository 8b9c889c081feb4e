"""Adds the branches inside the linears' own calls, by Flax's interceptor."""

from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from gemma4_lora import quant
from gemma4_lora.gemma4 import _linears
from gemma4_lora.gemma4 import _upstream
from gemma4_lora.gemma4 import _weights
from gemma4_lora.nn.branches import _base
from gemma4_lora.nn.branches import _clipped
from gemma4_lora.nn.branches import _dora
from gemma4_lora.nn.branches import _init
from gemma4_lora.nn.branches import _joint
from gemma4_lora.nn.branches import _low_rank
from gemma4_lora.targets import _resolve


@dataclasses.dataclass(frozen=True, kw_only=True)
class Injector:
  """Interceptor that adds the branches, and makes A and B on init.

  Attributes:
    adapted: The adapted projections.
    use_rslora: How a branch's scale follows from alpha and rank.
    is_training: Whether the model is training: dropout, and one product of base
      and branches, which with B = 0 is the base's but for rounding.
    dtype: Of new A and B.
    root: Path of the model within the outermost module: rows are relative to
      it.
    base_dtype: Of the base, where it is quantised.
    init: How A and B start, see `_init`.
  """

  adapted: Sequence[_resolve.Adapted]
  use_rslora: bool
  is_training: bool
  dtype: Any
  root: tuple[str, ...]
  base_dtype: Any
  init: str = 'default'

  @property
  def key(self) -> str:
    """Says all that the branches depend on."""
    return (
        f'lora rslora={self.use_rslora} training={self.is_training}'
        f' dtype={jnp.dtype(self.dtype)} init={self.init} '
        + ','.join(
            f'{x.row.name}:{x.rank}:{x.alpha!r}:{x.dropout!r}:{x.use_dora}'
            for x in self.adapted
        )
    )

  @functools.cached_property
  def _by_path(self) -> dict[str, list[_resolve.Adapted]]:
    """The adapted projections by the path of their weight."""
    grouped = {}
    for linear in self.adapted:
      grouped.setdefault(linear.row.path, []).append(linear)
    return grouped

  def __call__(self, next_fun, args, kwargs, context):
    module = context.module
    if context.method_name != '__call__' or not isinstance(
        module, _upstream.LINEARS
    ):
      return next_fun(*args, **kwargs)
    # The MLP's linears share its scope: their own path is `layer_0/mlp`.
    scope = module.path[len(self.root) :]
    path = '.'.join((*scope, _upstream.weight_name(module)))
    adapted = self._by_path.get(path)
    if adapted is None:
      return next_fun(*args, **kwargs)
    eqn, x = _upstream.einsum_of(module, args, kwargs)
    if self._is_joint(module, adapted, eqn, x):
      return self._joint(module, adapted, eqn, x)
    branches = functools.partial(self._branches, module, adapted, eqn)
    if not isinstance(module, _upstream.ClippedEinsum):
      output = next_fun(*args, **kwargs)
      return output + branches(x, output)
    if module.is_initializing():
      next_fun(*args, **kwargs)  # Makes weight and bounds.
    return _clipped.apply(
        module, eqn, x, dtype=self.base_dtype, branches=branches
    )

  def _is_joint(
      self,
      module: nn.Module,
      adapted: Sequence[_resolve.Adapted],
      eqn: str,
      x: jax.Array,
  ) -> bool:
    """Whether base and branches are computed as one product."""
    return (
        self.is_training
        and isinstance(module, _upstream.Einsum)
        and not module.is_initializing()
        and _upstream.weight_scale(module) == 1
        and not any(linear.use_dora for linear in adapted)
        and _joint.pays(eqn, adapted[0].row.one_layer, x)
    )

  def _joint(
      self,
      module: nn.Module,
      adapted: Sequence[_resolve.Adapted],
      eqn: str,
      x: jax.Array,
  ) -> jax.Array:
    """Returns base and branches as one product."""
    branches = []
    for linear in adapted:
      row = linear.row.one_layer
      a, b = self._params(module, linear)
      low = _low_rank.apply_a(eqn, row, self._drop(module, linear, x), a)
      scale = linear.scale(use_rslora=self.use_rslora)
      branches.append((row, low * scale, b))
    weight = _upstream.weight(module)
    return _joint.apply(eqn, x, weight, branches, self.base_dtype)

  def _branches(
      self,
      module: nn.Module,
      adapted: Sequence[_resolve.Adapted],
      eqn: str,
      x: jax.Array,
      output: jax.Array,
  ) -> jax.Array:
    """Returns what all projections of one weight add to its output."""
    row = adapted[0].row.one_layer
    if row.slot_axis is None:  # The weight is one projection.
      (linear,) = adapted
      return self._branch(module, linear, eqn, x, output)
    slot_axis = row.slot_axis
    axis = _low_rank.packing_axis(eqn, slot_axis)
    return _low_rank.pack(
        {
            linear.row.slot: self._branch(
                module,
                linear,
                eqn,
                x,
                _low_rank.unpack(output, slot=linear.row.slot, axis=axis),
            )
            for linear in adapted
        },
        num_slots=row.shape[slot_axis],
        axis=axis,
    )

  def _branch(
      self,
      module: nn.Module,
      linear: _resolve.Adapted,
      eqn: str,
      x: jax.Array,
      output: jax.Array,
  ) -> jax.Array:
    """Returns what one projection adds to its output."""
    scale = linear.scale(use_rslora=self.use_rslora)
    scale *= _upstream.weight_scale(module)
    a, b = self._params(module, linear)
    dropped = self._drop(module, linear, x)
    branch = _low_rank.apply(
        eqn, linear.row.one_layer, dropped, a, b, scale=scale
    )
    if not linear.use_dora:
      return branch
    return self._with_magnitude(
        module,
        linear,
        eqn,
        a,
        b,
        # As in PEFT, the base's part of DoRA's change has the branch's dropout.
        x=None if dropped is x else dropped,
        output=output,
        branch=branch,
    )

  def _with_magnitude(
      self,
      module: nn.Module,
      linear: _resolve.Adapted,
      eqn: str,
      a: jax.Array,
      b: jax.Array,
      *,
      x: jax.Array | None,
      output: jax.Array,
      branch: jax.Array,
  ) -> jax.Array:
    """Returns what a projection adds under DoRA.

    Args:
      module: The linear.
      linear: The projection.
      eqn: Einsum of the base.
      a: A.
      b: B.
      x: Input, where it is another than that of `output`.
      output: What the base gives for the projection.
      branch: What LoRA would add.
    """
    row = linear.row.one_layer
    weight = _base.weight(module, self.base_dtype)
    if x is None:
      output = _upstream.without_bias(module, output)
    else:
      output = self._part(module, row, eqn, x)
    ratio = _dora.ratio(
        _scope(module, row).param('m', lambda _: _dora.magnitude(weight, row)),
        weight,
        # As the branch has them.
        a.astype(output.dtype),
        b.astype(output.dtype),
        row,
        scale=linear.scale(use_rslora=self.use_rslora),
    )
    return _dora.delta(output, branch, _low_rank.spread(eqn, row, ratio))

  def _part(
      self, module: nn.Module, row: _linears.Linear, eqn: str, x: jax.Array
  ) -> jax.Array:
    """Returns what the base makes of an input, for one projection."""

    def apply(x, value):
      weight = quant.dense(value, self.base_dtype)
      part = _weights.part(weight, row) * _upstream.weight_scale(module)
      return _low_rank.project(eqn, row, x, part)

    value = _upstream.weight(module)
    if _base.is_quantized(module):
      return _base.linear(apply, x, value)
    return apply(x, value)

  def _params(
      self, module: nn.Module, linear: _resolve.Adapted
  ) -> tuple[jax.Array, jax.Array]:
    """Returns A and B, made on init.

    They are made on sub-scopes: gemma patches `nn.Module.param`, which would
    cast them to the base's dtype.
    """
    row = linear.row.one_layer
    scope = _scope(module, row)
    if not module.is_initializing():
      _check_leaves(scope, linear)
    a_shape, b_shape = row.lora_shapes(linear.rank)
    fan_in = math.prod(row.in_shape)
    if module.is_initializing() and self.init != 'default':
      draw = functools.partial(
          _init.draw,
          init=self.init,
          fan_in=fan_in,
          fan_out=math.prod(row.out_shape),
          rank=linear.rank,
      )
      # Each expert draws its own.
      key = scope.make_rng('params')
      a, b = jax.vmap(draw)(jax.random.split(key, math.prod(row.batch_shape)))
      return (
          scope.param('a', lambda _: a.reshape(a_shape).astype(self.dtype)),
          scope.param('b', lambda _: b.reshape(b_shape).astype(self.dtype)),
      )
    a = scope.param('a', _uniform(fan_in**-0.5), a_shape, self.dtype)
    b = scope.param('b', nn.initializers.zeros, b_shape, self.dtype)
    return a, b

  def _drop(
      self, module: nn.Module, linear: _resolve.Adapted, x: jax.Array
  ) -> jax.Array:
    """Applies dropout to a branch's input."""
    if not self.is_training or not linear.dropout:
      return x
    kept = 1 - linear.dropout
    keep = jax.random.bernoulli(module.make_rng('dropout'), kept, x.shape)
    return jnp.where(keep, x / kept, 0)


def _scope(module: nn.Module, row: _linears.Linear) -> Any:
  """Returns the scope that holds a projection's LoRA leaves."""
  scope: Any = module.scope
  for name in ('lora', row.projection):
    scope = scope.push(name, reuse=True)
  return scope


def _check_leaves(scope: Any, linear: _resolve.Adapted) -> None:
  """Raises unless the parameters have the leaves that the settings read.

  Kauldron applies with every collection mutable: flax would quietly draw new
  leaves at each step.
  """
  path = linear.row.lora_path
  for name in ('a', 'b', 'm') if linear.use_dora else ('a', 'b'):
    if not scope.has_variable('params', name):
      raise ValueError(
          f'The parameters have no LoRA leaf {path}.{name}, which g4.nn.LoRA'
          ' reads. Were they made by this model.init, with the same targets'
          ' and the same use_dora=?'
      )


def _uniform(bound: float) -> nn.initializers.Initializer:
  """`U(-bound, bound)`."""

  def init(key, shape, dtype):
    return jax.random.uniform(key, shape, dtype, minval=-bound, maxval=bound)

  return init
