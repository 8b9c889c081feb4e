"""Runs equal layers as loops, by Flax's interceptor.

gemma writes its 30 to 60 layers out one by one, and the compiler works through
each of them. But they repeat: E2B has 3 times 4 local layers and a global one,
then 4 times the same with shared keys and values. This module traces and
compiles each kind of layer once, in `jax.lax.scan`.

Parameters stay where they are, layer by layer. To stack the base would double
it; instead each pass of a loop picks its layer's weights (`jax.lax.switch`),
and so does the backward pass, by rematerialisation. Small parameters and
trained ones are stacked: each pass then gives the gradients of its layer alone.
Under FSDP, the picked weights are gathered at that point, see `_placement`.
"""

from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

from flax import core
import jax
import jax.numpy as jnp
import numpy as np

from gemma4_lora import _trees
from gemma4_lora.gemma4 import _upstream
from gemma4_lora.gemma4.forward import _attention_math
from gemma4_lora.host import _placement
from gemma4_lora.nn.blocks import _loops
from gemma4_lora.nn.blocks import _remat
from gemma4_lora.targets import _full
from gemma4_lora.targets import _resolve

# Operations that move values but compute none. The backward pass repeats those
# on weights; otherwise each pass of a loop would keep a copy of its weights.
_MOVES = frozenset(
    {
        'broadcast_in_dim',
        'cond',
        'convert_element_type',
        'name',
        'reshape',
        'sharding_constraint',
        'slice',
        'squeeze',
        'transpose',
    }
)


class Scan:
  """Interceptor for one call of the model, without a cache.

  It must be the innermost.

  Attributes:
    key: Says all that the result depends on.
  """

  def __init__(
      self,
      *,
      adapted: Sequence[_resolve.Adapted],
      saved: Sequence[_full.Saved],
      remat: str,
  ):
    """Initialises.

    Args:
      adapted: The adapted projections. Layers with different ones do not share
        a loop.
      saved: What is trained in full.
      remat: Policy, see `_remat`.
    """
    placement = _placement.current()
    self.key = f'scan {remat} {placement.key if placement else None}'
    self._adapted = _by_layer(adapted)
    self._saved = frozenset(x.row.path for x in saved)
    self._policy = _keep if remat == 'none' else _remat.save_only(remat)

  def __call__(self, next_fun, args, kwargs, context):
    module = context.module
    if module.is_initializing() or not _upstream.is_blocks_method(
        module, context.method_name
    ):
      return next_fun(*args, **kwargs)
    inputs = args[0] if args else kwargs['inputs']
    layers = _Layers(module, inputs, trained=self._saved, policy=self._policy)
    kinds = [
        (layers.kind(i), self._adapted.get(i))
        for i in range(module.config.num_layers)
    ]
    return module.final_norm(layers.run(_loops.find(kinds))), {}


def _keep(primitive: Any, *_: Any, **__: Any) -> bool:
  """The policy that keeps everything but weights."""
  return primitive.name not in _MOVES


def _by_layer(
    adapted: Sequence[_resolve.Adapted],
) -> dict[int | None, tuple[Hashable, ...]]:
  """Returns what is adapted in each layer, without the layer's number."""
  by_layer: dict[int | None, tuple[Hashable, ...]] = {}
  for linear in adapted:
    row = linear.row
    row = dataclasses.replace(
        row, layer=None, path=row.starred(row.path), hf_name=''
    )
    here = by_layer.get(linear.row.layer, ())
    by_layer[linear.row.layer] = (*here, dataclasses.replace(linear, row=row))
  return by_layer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _Pass:
  """What differs from layer to layer of a loop, with one axis for each loop.

  Attributes:
    at: i32, place among the layers of the loop.
    number: i32, of the layer.
    stacked: Parameters that are stacked.
    per_layer: `[B, T, P]`, the layer's input of its own, or None.
  """

  at: jax.Array
  number: jax.Array
  stacked: Any
  per_layer: jax.Array | None


class _Layers:
  """The layers of a model, as functions of their parameters."""

  def __init__(
      self,
      module: _upstream.Transformer,
      inputs: Any,
      *,
      trained: frozenset[str],
      policy: Callable[..., bool],
  ):
    self._module = module
    self._inputs = inputs
    self._policy = policy
    self._placement = _placement.current()
    self._sources = _upstream.kv_sources(module.config)
    params = core.unfreeze(dict(module.variables['params']))
    split = [_split(params, f'layer_{i}', trained) for i in self._numbers]
    self._picked, self._stacked = zip(*split, strict=True)
    has_dropout = module.has_rng('dropout')
    self._dropout = module.make_rng('dropout') if has_dropout else None

  @property
  def _numbers(self) -> np.ndarray:
    return np.arange(self._module.config.num_layers)

  def kind(self, layer: int) -> Hashable:
    """Returns a value that is equal for layers which can share a loop."""
    block = self._module.blocks[layer]
    fields = tuple(
        (field.name, getattr(block, field.name))
        for field in dataclasses.fields(block)
        if field.name not in ('name', 'parent')
    )
    source = self._sources[layer]
    return (
        fields,
        _signature(self._picked[layer]),
        _signature(self._stacked[layer]),
        None if source == layer else source,
    )

  def run(self, loops: _loops.Loops) -> jax.Array:
    """Returns the output of the last layer."""
    x = self._inputs.embeddings
    shared = {
        source: _attention_math.no_keys_and_values(
            self._module.config, source, x
        )
        for layer, source in enumerate(self._sources)
        if layer != source
    }
    per_layer = self._inputs.per_layer_inputs
    if per_layer is not None:
      per_layer = jnp.moveaxis(per_layer, -2, 0)
    passes = self._passes(loops, self._numbers, per_layer)
    x, _ = self._run(loops, self._numbers, passes, x, shared)
    return x

  def _passes(
      self, loops: _loops.Loops, numbers: np.ndarray, per_layer: Any
  ) -> list[Any]:
    """Returns a `_Pass` for each layer that has a body, in lists of loops."""
    passes: list[Any] = []
    for each, here, inputs in _with_shares(loops, numbers, per_layer):
      if isinstance(each, _loops.Loop):
        passes.append(self._passes(each.body, here, inputs))
        continue
      stacked = [self._stacked[i] for i in here.flat]
      passes.append(
          _Pass(
              at=jnp.arange(here.size).reshape(here.shape),
              number=jnp.asarray(here),
              stacked=jax.tree.map(
                  lambda *x, dims=here.shape: jnp.stack(x).reshape(
                      (*dims, *x[0].shape)
                  ),
                  *stacked,
              ),
              per_layer=inputs,
          )
      )
    return passes

  def _run(
      self,
      loops: _loops.Loops,
      numbers: np.ndarray,
      passes: Sequence[Any],
      x: jax.Array,
      shared: Mapping[int, Any],
  ) -> tuple[jax.Array, Mapping[int, Any]]:
    """Runs loops.

    Args:
      loops: What to run.
      numbers: Numbers of the layers, `[*passes of the loops around, layers]`.
      passes: What `_passes` returned for this pass of the loops around.
      x: `[B, T, D]`
      shared: Keys and values that other layers read, by those layers' numbers.

    Returns:
      x and shared, after them.
    """
    shares = _with_shares(loops, numbers, None)
    for (each, here, _), given in zip(shares, passes, strict=True):
      if isinstance(each, _loops.Loop):

        def body(carry, given, each=each, here=here):
          return self._run(each.body, here, given, *carry), None

        (x, shared), _ = jax.lax.scan(body, (x, shared), given)
      else:
        x, shared = self._layer(here, given, x, shared)
    return x, shared

  def _layer(
      self,
      numbers: np.ndarray,
      given: _Pass,
      x: jax.Array,
      shared: Mapping[int, Any],
  ) -> tuple[jax.Array, Mapping[int, Any]]:
    """Runs one layer. In a loop, the layer index is a tracer."""
    first, last = numbers.flat[0], numbers.flat[-1]
    source = self._sources[first]
    picked = [self._picked[i] for i in numbers.flat]

    def call(x, read, given):
      pick = [lambda layers, i=i: layers[i] for i in range(len(picked))]
      params = _merge(jax.lax.switch(given.at, pick, picked), given.stacked)
      if self._placement is None:
        return self._call(first, params, x, read, given)
      x = self._placement.of_batch(x)
      params = self._placement.together(params, prefix=f'layer_{first}')
      made, x = self._call(first, params, x, read, given)
      return made, self._placement.of_batch(x)

    call = jax.checkpoint(call, policy=self._policy, prevent_cse=False)
    made, x = call(x, None if source == first else shared[source], given)
    # Each pass writes it; the value of the last pass stays.
    if last in shared:
      shared = {**shared, last: made}
    assert not set(numbers.flat[:-1]) & set(shared)
    return x, shared

  def _call(
      self, layer: int, params: Any, x: jax.Array, read: Any, given: _Pass
  ) -> tuple[Any, jax.Array]:
    """Calls the block of a layer; the parameters may be another layer's."""
    block = self._module.blocks[layer]
    arguments = _upstream.block_arguments(self._module, self._inputs, layer)
    rngs = {}
    if self._dropout is not None:
      rngs['dropout'] = jax.random.fold_in(self._dropout, given.number)

    def call(scope):
      for name in block.path:
        scope = scope.push(name)
      return block.clone(parent=scope)(
          x,
          **arguments,
          per_layer_input=given.per_layer,
          kv_shared_cache=read,
      )

    for name in reversed(block.path):
      params = {name: params}
    return core.apply(call)({'params': params}, rngs=rngs)


def _with_shares(
    loops: _loops.Loops, numbers: np.ndarray, inputs: Any
) -> Iterator[tuple[_loops.Layer | _loops.Loop, np.ndarray, Any]]:
  """Yields layers and loops, with their shares of axes for the layers.

  Args:
    loops: Layers and loops.
    numbers: `[*passes of the loops around, layers]`
    inputs: `[*passes of the loops around, layers, ...]`, or None.
  """
  outer = numbers.ndim - 1
  start = 0
  for each in loops:

    def cut(x: Any, each=each, start=start) -> Any:
      if x is None:
        return None
      x = x[(slice(None),) * outer + (slice(start, start + each.size),)]
      dims = (each.count, -1) if isinstance(each, _loops.Loop) else ()
      return x.reshape((*x.shape[:outer], *dims, *x.shape[outer + 1 :]))

    yield each, cut(numbers), cut(inputs)
    start += each.size


def _split(
    params: Mapping[str, Any], name: str, trained: frozenset[str]
) -> tuple[Any, Any]:
  """Returns parameters to pick and parameters to stack, None for the rest."""

  def is_stacked(path, x):
    keys = (name, *_trees.key_path(path))
    return x.ndim < 2 or _trees.is_lora(keys) or _trees.join(keys) in trained

  def only(wanted):
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x if is_stacked(path, x) == wanted else None,
        params[name],
    )

  return only(False), only(True)


def _merge(picked: Any, stacked: Any) -> Any:
  return jax.tree.map(
      lambda x, y: y if x is None else x,
      picked,
      stacked,
      is_leaf=lambda x: x is None,
  )


def _signature(params: Any) -> Hashable:
  arrays, tree = jax.tree.flatten(params)
  return tree, tuple((x.shape, x.dtype) for x in arrays)
