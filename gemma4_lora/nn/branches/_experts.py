"""LoRA on routed experts: grouped products beside gemma's own.

gemma sorts the tokens by the expert that they go to, and multiplies each group
with its expert's weight in one `jax.lax.ragged_dot`. There is no module between
those products that could be intercepted. So if an expert is adapted, this
module computes the whole method, with the branches:

| base, of M = tokens * top k sorted rows | A, B | branch |
|---|---|---|
| gate and up: `MD,ED(2F)->M(2F)` | `EDr`, `ErF` | `MD,EDr->Mr`, `Mr,ErF->MF` |
| down: `MF,EFD->MD` | `EFr`, `ErD` | `MF,EFr->Mr`, `Mr,ErD->MD` |

The branches make no array of a merged weight's size, forward nor backward.
https://github.com/google-deepmind/gemma/blob/main/gemma/gm/nn/gemma4/_moe.py
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from gemma4_lora import quant
from gemma4_lora.gemma4 import _upstream
from gemma4_lora.nn.branches import _expert_products
from gemma4_lora.nn.branches import _injector
from gemma4_lora.nn.branches import _low_rank
from gemma4_lora.targets import _resolve

# Returns what to add to a product of sorted rows, given the rows of each
# expert.
_Branch = Callable[[jax.Array, jax.Array], jax.Array | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertInjector(_injector.Injector):
  """Interceptor that adds the branches of the routed experts."""

  # Blocks whose products were computed here, in this call of the model.
  _reached: set[str] = dataclasses.field(
      default_factory=set, init=False, compare=False
  )

  @functools.cached_property
  def _by_block(self) -> dict[str, dict[str, _resolve.Adapted]]:
    """By path of the mixture of experts, then by projection."""
    grouped = {}
    for linear in self.adapted:
      block, _ = _split(linear)
      grouped.setdefault(block, {})[linear.row.projection] = linear
    return grouped

  def __call__(self, next_fun, args, kwargs, context):
    module = context.module
    if module.scope is None:  # An unbound module has no path.
      return next_fun(*args, **kwargs)
    block = '.'.join(module.path[len(self.root) :])
    adapted = self._by_block.get(block)
    if adapted is None:
      return next_fun(*args, **kwargs)
    if context.method_name == _upstream.EXPERTS_METHOD:
      self._reached.add(block)
      return self._run(module, adapted, *args, **kwargs)
    output = next_fun(*args, **kwargs)
    if context.method_name == '__call__' and block not in self._reached:
      raise ValueError(
          f'g4.nn.LoRA cannot adapt the experts of {block}: this gemma does not'
          f' compute them in {type(module).__name__}.{_upstream.EXPERTS_METHOD},'
          ' as 4.0.1 and 4.1.0 do. Install one of those, or leave "experts" out'
          ' of targets=.'
      )
    return output

  def _run(
      self,
      module: Any,
      adapted: Mapping[str, _resolve.Adapted],
      *args: Any,
      **kwargs: Any,
  ) -> jax.Array:
    """Returns what gemma's method does, with the branches."""

    def gate_up(rows, sizes):
      branches: dict[int | None, jax.Array] = {
          linear.row.slot: self._grouped(module, linear, rows, sizes)
          for linear in adapted.values()
          if linear.row.slot is not None
      }
      if not branches:
        return None
      return _low_rank.stack_slots(branches, num_slots=2, axis=1)

    def down(hidden, sizes):
      for linear in adapted.values():
        if linear.row.slot is None:
          return self._grouped(module, linear, hidden, sizes)
      return None

    return run(
        module,
        *args,
        dtype=self.base_dtype,
        gate_up=gate_up,
        down=down,
        **kwargs,
    )

  def _grouped(
      self,
      module: nn.Module,
      linear: _resolve.Adapted,
      x: jax.Array,
      sizes: jax.Array,
  ) -> jax.Array:
    """Returns what one projection adds, for rows sorted by expert."""
    _, name = _split(linear)
    weight = getattr(module, name)  # The module whose scope holds the leaves.
    leaves = self._params(weight, linear)
    return _low_rank.apply_grouped(
        self._drop(weight, linear, x),
        leaves['a'],
        leaves['b'],
        sizes,
        scale=linear.scale(use_rslora=self.use_rslora),
    )


def is_quantized(module: Any) -> bool:
  """Whether a weight of a mixture of experts is quantised."""
  weights = (module.gating_einsum(), module.linear())
  return any(map(quant.is_quantized, weights))


def run(
    module: Any,
    x: jax.Array,
    expert_choices: jax.Array,
    expert_weights: jax.Array,
    *,
    dtype: Any,
    gate_up: _Branch = lambda *_: None,
    down: _Branch = lambda *_: None,
) -> jax.Array:
  """Returns what gemma's method does, with branches.

  The operations are gemma's, so that B = 0 gives the same bits.

  Args:
    module: The mixture of experts.
    x: `[G, S, D]`
    expert_choices: i32`[G, S, K]`, the experts of each token.
    expert_weights: `[G, S, E]`, the weight of each expert's output.
    dtype: Dtype of dequantised weights.
    gate_up: What to add to gate and up, `[M, 2, F]`, of the sorted rows and the
      numbers of rows of each expert.
    down: What to add to down, `[M, D]`.
  """
  top_k = expert_choices.shape[-1]
  choices = expert_choices.ravel()
  order = choices.argsort()
  choices = choices[order]  # [M], the expert of each sorted row.
  sizes = jnp.bincount(choices, length=module.num_experts)
  rows = x.reshape(-1, x.shape[-1])[order // top_k]  # [M, D]

  hidden = _expert_products.gate_up(
      rows, module.gating_einsum(), sizes, dtype
  )  # [M, 2, F]
  branch = gate_up(rows, sizes)
  if branch is not None:
    hidden += branch
  hidden = nn.gelu(hidden[:, 0]) * hidden[:, 1]

  output = _expert_products.down(hidden, module.linear(), sizes, dtype)
  branch = down(hidden, sizes)
  if branch is not None:
    output += branch
  output *= module.per_expert_scale.astype(output.dtype)[choices, None]

  output = output[order.argsort()].reshape(*expert_choices.shape, -1)
  weights = jnp.take_along_axis(expert_weights, expert_choices, axis=-1)
  return jnp.einsum(
      'GSKD,GSK->GSD', output, weights, preferred_element_type=output.dtype
  )


def _split(linear: _resolve.Adapted) -> tuple[str, str]:
  """Returns the path of the mixture of experts, and the weight's name in it."""
  block, _, name = linear.row.module_path.rpartition('.')
  return block, name
