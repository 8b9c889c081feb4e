"""Filters: which examples a dataset keeps."""

import dataclasses
from typing import Any

from absl import logging
from gemma import gm
from grain import python as grain
from kauldron import kd

from gemma4_lora.data import _tokens
from gemma4_lora.data.layouts import _fields
from gemma4_lora.data.layouts import _prompt_response
from gemma4_lora.data.templates import _render
from gemma4_lora.data.templates import _style


@dataclasses.dataclass(kw_only=True, frozen=True)
class DropLongPrompts(grain.FilterTransform):
  """Drops examples whose prompt leaves no room for a response.

  With `ChatTask(truncate=True)` such an example has nothing to train on, and
  is an error. Put this before it, with the same values:

  ```python
  transforms=[
      g4.data.DropLongPrompts(
          in_prompt="src", tokenizer=tokenizer, max_length=512
      ),
      g4.data.ChatTask(..., max_length=512, truncate=True),
  ]
  ```

  Each dropped example is logged as a warning. One whose prompt cannot be read is
  kept: `ChatTask` counts it as malformed.

  Attributes:
    in_prompt: Key of the prompt.
    tokenizer: A Gemma 4 tokenizer.
    max_length: `ChatTask`'s, in tokens: the prompt may fill all of it, as the
      first token of the response is then the last target.
  """

  in_prompt: kd.kontext.Key
  tokenizer: gm.text.Tokenizer
  max_length: int

  def __post_init__(self):
    _tokens.check_format(self.tokenizer, name="DropLongPrompts")

  def filter(self, element: Any) -> bool:
    """Returns whether to keep the example."""
    try:
      text, length = self._length(element)
    except Exception:  # `ChatTask` counts it, and reports the error.
      return True
    keep = length <= self.max_length
    if not keep:
      logging.warning(
          "DropLongPrompts: dropped a prompt of %d tokens (max_length=%d): %.60r",
          length,
          self.max_length,
          text,
      )
    return keep

  def _length(self, element: Any) -> tuple[str, int]:
    """Returns the prompt, and its length in tokens."""
    text = _fields.get_text(element, self.in_prompt)
    conversation = _prompt_response.from_texts(
        text, "", in_prompt=self.in_prompt, in_response="response"
    )
    prompt = _render.render(conversation, _style.Style()).prompt
    return text, len(self.tokenizer.encode(prompt, add_bos=True))
