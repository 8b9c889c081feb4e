"""A wrapper that only corrects what gemma computes wrongly."""

from typing import Any

from flax import linen as nn

from gemma4_lora.gemma4 import _upstream
from gemma4_lora.nn.wrapper import _wrapper


class RouterFix(_wrapper.ModelWrapper):
  """Corrects errors of gemma's model, for use without LoRA.

  It corrects:

  * the MoE router of 26B_A4B. gemma 4.0.1 normalises the router's input twice,
    which sends tokens to the wrong experts;
  * images, in every model. The vision tower of gemma 4.0.1 and 4.1.0 attends to
    padding patches; and gemma drops logits behind an image.

  `g4.nn.LoRA` does this by itself. A model without LoRA, or with fused LoRA,
  needs this wrapper:

  ```python
  model = g4.nn.RouterFix(model=gm.nn.Gemma4_26B_A4B())
  sampler = gm.text.ChatSampler(model=model, params=params)
  ```

  If gemma has no such error, the wrapper changes nothing: it runs the attention
  once on a few numbers to see if gemma excludes padding. A model without
  experts computes the same as before if there are no images.

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
