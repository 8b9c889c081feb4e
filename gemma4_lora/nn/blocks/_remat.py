"""Rematerialisation of blocks, by Flax's interceptor.

A block's activations are dropped after the forward pass and recomputed in the
backward pass from the block's input, except what the policy keeps. The base is
frozen: only the LoRA branches need the inputs of its linears.
"""

from collections.abc import Callable
from typing import Any

from flax import linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from gemma4_lora.gemma4 import _released
from gemma4_lora.gemma4 import _upstream
from gemma4_lora.nn.attention import _blockwise

# Outputs of a block's linears, LoRA branch included, except for the router's.
_LINEARS = {
    row.weight_name
    for row in _released.linears()
    if row.tower == 'text' and row.layer is not None
    if not row.is_router
}
# What each policy keeps.
POLICIES = {
    'none': None,
    'block': (),
    'attention': (_blockwise.NAME,),
    'dots': (_blockwise.NAME, *sorted(_LINEARS)),
}


def check(policy: str, *, attention: str) -> None:
  """Raises ValueError for an unknown policy.

  Args:
    policy: What the user wrote.
    attention: The `attention=` beside it.

  Raises:
    ValueError: An unknown policy, or one that keeps outputs which the model
      does not have.
  """
  if policy not in POLICIES:
    raise ValueError(
        f'g4.nn.LoRA(remat={policy!r}): there is'
        f' {", ".join(map(repr, POLICIES))}.'
    )
  if policy == 'attention' and attention == 'gemma':
    raise ValueError(
        "g4.nn.LoRA(remat='attention') keeps the output of attention, so that"
        " the backward pass of attention='blockwise' need not compute it again."
        f' With attention={attention!r} it would be computed again: write'
        " attention='blockwise' (or 'splash'), or remat='block'."
    )


def save_only(policy: str) -> Callable[..., Any]:
  """Returns what a policy, not `'none'`, keeps, as `jax.checkpoint` takes it."""
  return jax.checkpoint_policies.save_only_these_names(*POLICIES[policy])


class Remat:
  """Interceptor for one call of the model: recomputes each block.

  Attributes:
    key: Says all that the result depends on.
  """

  def __init__(self, policy: str):
    self.key = f'remat {policy}'
    self._policy = save_only(policy)
    self._within = False

  def __call__(self, next_fun, args, kwargs, context):
    module = context.module
    if (
        self._within
        or context.method_name != '__call__'
        or not isinstance(module, _upstream.Block)
        or module.is_initializing()
    ):
      return next_fun(*args, **kwargs)

    def call(block, *args):
      return block(*args, **kwargs)

    self._within = True
    try:
      return nn.remat(call, policy=self._policy)(module, *args)
    finally:
      self._within = False


class Names:
  """Interceptor that names the outputs of linears for the policies.

  It must be the outermost, so that the kept output of a linear includes its
  branch.

  Attributes:
    key: Says all that the result depends on.
  """

  key = 'names'

  def __call__(self, next_fun, args, kwargs, context):
    output = next_fun(*args, **kwargs)
    module = context.module
    if context.method_name != '__call__' or not isinstance(
        module, _upstream.LINEARS
    ):
      return output
    return checkpoint_name(output, _name(module))


def _name(module: nn.Module) -> str:
  name = _upstream.weight_name(module)
  return module.path[-1] if name in ('w', 'kernel') else name
