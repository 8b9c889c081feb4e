"""A wrapper that only mends the MoE router."""

from typing import Any

from flax import linen as nn

from gemma4_lora.gemma4 import _upstream
from gemma4_lora.nn.wrapper import _wrapper


class RouterFix(_wrapper.ModelWrapper):
  """Makes a 26B_A4B right on gemma 4.0.1, for use without LoRA.

  gemma 4.0.1 normalises the router's input twice, which sends tokens to the
  wrong experts. `g4.nn.LoRA` mends that by itself; a model whose LoRA has been
  fused, or which never had any, needs this:

  ```python
  model = g4.nn.RouterFix(model=gm.nn.Gemma4_26B_A4B())
  sampler = gm.text.ChatSampler(model=model, params=params)
  ```

  On gemma HEAD, and around a model without experts, it changes nothing.

  Attributes:
    model: A Gemma 4 model.
  """

  def __post_init__(self):
    _upstream.check_is_gemma4(self.model, argument='g4.nn.RouterFix(model=...)')
    super().__post_init__()

  @nn.compact
  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    """Calls the model."""
    return self._call_intercepted(*args, interceptors={}, **kwargs)
