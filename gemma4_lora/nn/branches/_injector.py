"""Adds the branches inside the linears' own calls, by Flax's interceptor."""

from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from gemma4_lora import _trees
from gemma4_lora import variants
from gemma4_lora.gemma4 import _linears
from gemma4_lora.gemma4 import _upstream
from gemma4_lora.gemma4 import _weights
from gemma4_lora.nn.branches import _base
from gemma4_lora.nn.branches import _clipped
from gemma4_lora.nn.branches import _init
from gemma4_lora.nn.branches import _joint
from gemma4_lora.nn.branches import _low_rank
from gemma4_lora.nn.branches import _pending
from gemma4_lora.quant import _arrays
from gemma4_lora.targets import _resolve


@dataclasses.dataclass(frozen=True, kw_only=True)
class Injector:
  """Interceptor that adds the branches, and makes A and B on init.

  Attributes:
    adapted: The adapted projections.
    use_rslora: How a branch's scale follows from alpha and rank.
    is_training: Whether the model is training: dropout, and one product of base
      and branches, which with B = 0 is the base's except for rounding.
    dtype: Dtype of new A and B.
    root: Path of the model within the outermost module: rows are relative to
      it.
    base_dtype: Dtype of the base before it was quantised.
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
    """A string of all settings that the branches depend on."""
    return (
        f'lora rslora={self.use_rslora} training={self.is_training}'
        f' dtype={jnp.dtype(self.dtype)} init={self.init} '
        + ','.join(
            f'{x.row.name}:{x.rank}:{x.alpha!r}:{x.dropout!r}:{x.variant.name}'
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
        and all(linear.variant.is_branch_alone for linear in adapted)
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
      leaves = self._params(module, linear)
      dropped = self._drop(module, linear, x)
      low = _low_rank.apply_a(eqn, row, dropped, leaves['a'])
      scale = linear.scale(use_rslora=self.use_rslora)
      branches.append((row, low * scale, leaves['b']))
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
    axis = _low_rank.output_slot_axis(eqn, slot_axis)
    return _low_rank.stack_slots(
        {
            linear.row.slot: self._branch(
                module,
                linear,
                eqn,
                x,
                _low_rank.take_slot(output, slot=linear.row.slot, axis=axis),
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
    row = linear.row.one_layer
    scale = linear.scale(use_rslora=self.use_rslora)
    leaves = self._params(module, linear)
    dropped = self._drop(module, linear, x)
    branch = _low_rank.apply(
        eqn,
        row,
        dropped,
        leaves['a'],
        leaves['b'],
        scale=scale * _upstream.weight_scale(module),
    )

    def base_output():
      # As in PEFT, the base's part of a change has the branch's dropout.
      if dropped is x:
        return _upstream.without_bias(module, output)
      return self._part(module, row, eqn, dropped)

    call = variants.Call(
        row=row,
        leaves=leaves,
        scale=scale,
        branch=branch,
        base_output=base_output,
        base_weight=lambda: _base.weight(module, self.base_dtype),
        spread=functools.partial(_low_rank.spread, eqn, row),
    )
    return linear.variant.delta(call)

  def _part(
      self, module: nn.Module, row: _linears.Linear, eqn: str, x: jax.Array
  ) -> jax.Array:
    """Returns the base's output for one projection."""

    def apply(x, value):
      weight = _arrays.dense(value, self.base_dtype)
      part = _weights.part(weight, row) * _upstream.weight_scale(module)
      return _low_rank.project(eqn, row, x, part)

    value = _upstream.weight(module)
    if _base.is_quantized(module):
      return _base.linear(apply, x, value)
    return apply(x, value)

  def _params(
      self, module: nn.Module, linear: _resolve.Adapted
  ) -> dict[str, jax.Array]:
    """Returns the LoRA leaves by name, made on init.

    They are made on sub-scopes: gemma patches `nn.Module.param`, which would
    cast them to the base's dtype.
    """
    row = linear.row.one_layer
    scope = _scope(module, row)
    if not module.is_initializing():
      _check_leaves(scope, linear)
    leaves = self._a_and_b(module, scope, linear)

    def start(_, leaf):
      return leaf.start(_base.weight(module, self.base_dtype), row)

    for leaf in linear.variant.own:
      leaves[leaf.name] = scope.param(leaf.name, start, leaf)
    return leaves

  def _a_and_b(
      self, module: nn.Module, scope: Any, linear: _resolve.Adapted
  ) -> dict[str, jax.Array]:
    """Returns A and B, made on init."""
    row = linear.row.one_layer
    a_shape = variants.A.shape(row, linear.rank)
    b_shape = variants.B.shape(row, linear.rank)
    fan_in = math.prod(row.in_shape)
    if module.is_initializing() and _init.waits(self.init):
      for name, shape in {'a': a_shape, 'b': b_shape}.items():
        scope.param(name, lambda _, x=shape: _pending.fill(x, self.dtype))
      # So that init itself computes what the base does, without NaN.
      return {'a': jnp.zeros(a_shape), 'b': jnp.zeros(b_shape)}
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
      return {
          'a': scope.param(
              'a', lambda _: a.reshape(a_shape).astype(self.dtype)
          ),
          'b': scope.param(
              'b', lambda _: b.reshape(b_shape).astype(self.dtype)
          ),
      }
    a = scope.param('a', _uniform(fan_in**-0.5), a_shape, self.dtype)
    b = scope.param('b', nn.initializers.zeros, b_shape, self.dtype)
    return {'a': a, 'b': b}

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
  for name in (_trees.LORA_KEY, row.projection):
    scope = scope.push(name, reuse=True)
  return scope


def _check_leaves(scope: Any, linear: _resolve.Adapted) -> None:
  """Raises unless the parameters have the leaves that the settings read.

  Kauldron applies with every collection mutable: flax would draw new leaves at
  each step, without an error.
  """
  path = linear.row.lora_path
  for leaf in linear.variant.leaves:
    if not scope.has_variable('params', leaf.name):
      same = ' and '.join(f'{x}=' for x in variants.ARGUMENTS)
      raise ValueError(
          f'The parameters have no LoRA leaf {path}.{leaf.name}, which'
          ' g4.nn.LoRA reads. Were they made by this model.init, with the same'
          f' targets and the same {same}?'
      )


def _uniform(bound: float) -> nn.initializers.Initializer:
  """`U(-bound, bound)`."""

  def init(key, shape, dtype):
    return jax.random.uniform(key, shape, dtype, minval=-bound, maxval=bound)

  return init
