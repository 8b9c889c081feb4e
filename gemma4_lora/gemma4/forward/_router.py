"""Gives the MoE router the input that it was trained on.

Gemma 4's router normalises its input itself, so it must get the block's own
input. gemma 4.0.1 passes the output of `pre_ffw_norm`. gemma HEAD (4.1.0)
passes `unnormalized_x`, the same array that we pass: there this changes
nothing. Remove it once gemma >= 4.1 is the lower bound.
https://github.com/google-deepmind/gemma/blob/main/gemma/gm/nn/gemma4/_moe.py
"""

from collections.abc import Callable
from typing import Any

from gemma4_lora.gemma4 import _upstream


def feed_unnormalized() -> Callable[..., Any]:
  """Returns an interceptor, to be used for one call of the model."""
  block_inputs = {}

  def interceptor(next_fun, args, kwargs, context):
    module = context.module
    if isinstance(module, _upstream.RMSNorm) and module.scope is not None:
      *scope, name = module.scope.path or ('',)
      if name == 'pre_ffw_norm':
        block_inputs[tuple(scope)] = args[0]
      elif name == 'router_norm':
        *block, _ = scope  # `layer_0/mlp/router_norm`
        args = (block_inputs.pop(tuple(block)),)
    return next_fun(*args, **kwargs)

  return interceptor
