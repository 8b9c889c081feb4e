"""The model's output in a training step, beside or instead of logits."""

from typing import Any

import flax
import jax.numpy as jnp

from gemma4_lora.gemma4 import _upstream
from gemma4_lora.gemma4.forward import _embedder
from gemma4_lora.losses import _head


@flax.struct.dataclass
class Output(_upstream.Output):
  """gemma's output, and the hidden states behind its logits.

  Attributes:
    head: What `g4.losses` read.
    reference: The same for the model with LoRA off, if it was asked for.
  """

  head: _head.Head | None = None
  reference: Any = None


def add_head(
    output: _upstream.Output,
    *,
    embedding: Any,
    soft_cap: float | None,
    has_logits: bool,
    has_hidden_states: bool,
) -> Output:
  """Returns the output with a head.

  Args:
    output: Output of a call with `return_hidden_states=True`.
    embedding: `[V, D]`, quantised or not.
    soft_cap: Soft cap of the logits.
    has_logits: False if `NoLogits` left the logits out.
    has_hidden_states: Whether the caller asked for them.
  """
  return Output(
      logits=output.logits if has_logits else None,
      cache=output.cache,
      hidden_states=output.hidden_states if has_hidden_states else None,
      head=_head.Head(
          hidden=output.hidden_states,  # pyrefly: ignore[bad-argument-type]
          embedding=embedding,
          soft_cap=soft_cap,
      ),
  )


class NoLogits:
  """Interceptor that leaves logits out; an empty array takes their place.

  Attributes:
    key: Says all that the result depends on.
  """

  key = 'no logits'

  def __call__(self, next_fun, args, kwargs, context) -> Any:
    if _embedder.makes_logits(context.module, context.method_name):
      (x,) = (*args, *kwargs.values())
      return jnp.zeros((*x.shape[:-1], 0), x.dtype)
    return next_fun(*args, **kwargs)
