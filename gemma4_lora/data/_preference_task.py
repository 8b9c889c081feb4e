"""Pairs of answers, of which one is preferred, to tokens and masks."""

import dataclasses
import functools
from typing import Any

from gemma import gm
from grain import python as grain
from kauldron import kd
import numpy as np

from gemma4_lora.data import _chat_task
from gemma4_lora.data import _malformed
from gemma4_lora.data import _row_task
from gemma4_lora.data import _tokens
from gemma4_lora.data.layouts import _fields
from gemma4_lora.data.layouts import _layout
from gemma4_lora.data.layouts import _layouts

_CONVERSATION = 'conversation'


@dataclasses.dataclass(kw_only=True, frozen=True)
class PreferenceTask(_row_task.ConversationTask, grain.MapTransform):
  """Pairs for DPO, rendered as `ChatTask` renders conversations.

  ```python
  # Before:
  {"prompt": "2 + 2?", "chosen": "4.", "rejected": "22."}
  # After, with max_length=16:
  {
      "input": i32[2 16],  # Chosen, rejected.
      "target": i32[2 16],  # input, one step ahead
      "loss_mask": bool[2 16],  # True for the answer and its `<turn|>`
  }
  ```

  These are what `g4.losses.DpoLoss` and `gm.losses.DpoLoss` take. The mask is on
  the last turn of the model.

  Layouts are those of `ChatTask`. With two texts per row, the prompt and both
  answers are texts. With lists of messages, an answer is a list or the text of
  the model's message. It follows the prompt, a list or the text of the user's
  message, unless it begins with it. With `in_prompt=None` both answers are whole
  conversations.

  Attributes:
    layout: See `ChatTask`.
    in_prompt: Key of the prompt.
    in_chosen: Key of the preferred answer.
    in_rejected: Key of the other.
    in_system: See `ChatTask`.
    in_tools: See `ChatTask`.
    out_input: Key to write the model's input to.
    out_target: Key to write the labels to.
    out_target_mask: Key to write the mask of the answers to.
    drop_inputs: Whether to remove the input keys.
    tokenizer: A Gemma 4 tokenizer.
    max_length: Length of each of the two, in tokens.
    truncate: Whether to cut longer ones at the end. If False they are an error.
    thinking: See `ChatTask`.
    template: See `ChatTask`.
    enable_thinking: See `ChatTask`.
    empty_answers: See `ChatTask`, also for the next three.
    inline_markup: See `ChatTask`.
    null_arguments: See `ChatTask`.
    allowed_tags: See `ChatTask`.
    max_malformed: See `ChatTask`. A pair whose answers have equal tokens counts
      as malformed: there is nothing to prefer.
  """

  layout: str = 'prompt_response'

  in_prompt: kd.kontext.Key | None = 'prompt'
  in_chosen: kd.kontext.Key = 'chosen'
  in_rejected: kd.kontext.Key = 'rejected'
  in_system: kd.kontext.Key | None = None
  in_tools: kd.kontext.Key | None = None

  out_input: kd.kontext.Key = 'input'
  out_target: kd.kontext.Key = 'target'
  out_target_mask: kd.kontext.Key = 'loss_mask'

  tokenizer: gm.text.Tokenizer
  max_length: int
  truncate: bool = False

  thinking: str = 'keep'
  template: str = 'dialog'
  enable_thinking: bool = False

  def __post_init__(self):
    _malformed.check_limit(self.max_malformed, name='PreferenceTask')
    if self.in_prompt is None and not self._layout.is_chat:
      raise ValueError(
          f'PreferenceTask: layout={self.layout!r} needs `in_prompt=`. Whole'
          f' conversations are of {_layouts.chats()}.'
      )
    _ = self._chat  # Checks its arguments.

  def fields(self, element: Any) -> dict[str, np.ndarray]:
    """Returns the output fields of an example.

    Raises:
      ValueError: It is no pair to learn from.
      KeyError: It lacks a field.
    """
    pair = []
    for key in (self.in_chosen, self.in_rejected):
      fields = self._chat.fields(self._row(element, key))
      pair.append({k: v.reshape(-1) for k, v in fields.items()})
    chosen, rejected = pair
    if np.array_equal(chosen['target'], rejected['target']):
      raise ValueError(
          f'PreferenceTask: {self.in_chosen!r} and {self.in_rejected!r} are the'
          f' same tokens (of the first {self.max_length}): there is nothing to'
          ' prefer.'
      )
    out = {
        'input': self.out_input,
        'target': self.out_target,
        'loss_mask': self.out_target_mask,
    }
    return {
        name: np.stack([chosen[key], rejected[key]])
        for key, name in out.items()
    }

  def field_specs(self, max_length: int | None = None) -> dict[str, Any]:
    """Returns the shapes of the output fields; see `ChatTask.field_specs`."""
    length = max_length or self.max_length
    return {
        self.out_input: _tokens.spec(2, length, dtype=np.int32),
        self.out_target: _tokens.spec(2, length, dtype=np.int32),
        self.out_target_mask: _tokens.spec(2, length, dtype=np.bool_),
    }

  def _check(self) -> None:
    self._chat._check()  # pylint: disable=protected-access

  @functools.cached_property
  def _chat(self) -> _chat_task.ChatTask:
    """Renders each of the two."""
    return _chat_task.ChatTask(
        layout=self.layout,
        in_prompt='prompt',
        in_response=_CONVERSATION,
        in_messages=_CONVERSATION if self._layout.is_chat else None,
        in_system=self.in_system and 'system',
        in_tools=self.in_tools and 'tools',
        tokenizer=self.tokenizer,
        max_length=self.max_length,
        truncate=self.truncate,
        thinking=self.thinking,
        loss_on='last',
        template=self.template,
        enable_thinking=self.enable_thinking,
        **dataclasses.asdict(self.rules),
    )

  def _row(self, element: Any, answer: kd.kontext.Key) -> dict[str, Any]:
    """Returns the row of one of the two conversations.

    Raises:
      ValueError: An answer that is none.
      KeyError: A field is missing.
    """
    row = {}
    for name, key in (('system', self.in_system), ('tools', self.in_tools)):
      if key is not None:
        row[name] = _fields.get(element, key)
    row['prompt'], row[_CONVERSATION] = self._layout.read_answer(
        element, in_prompt=self.in_prompt, in_answer=answer
    )
    return row

  @property
  def _layout(self) -> _layout.Layout:
    return _layouts.by_name(self.layout)

  @property
  def _in_keys(self) -> list[str]:
    keys = (
        self.in_prompt,
        self.in_chosen,
        self.in_rejected,
        self.in_system,
        self.in_tools,
    )
    return [key for key in keys if key is not None]
