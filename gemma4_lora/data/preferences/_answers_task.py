"""Base of tasks of judged answers: prompts, answers and images."""

import abc
from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

from etils import enp
from gemma import gm
from grain import python as grain
from kauldron import kd
import numpy as np

from gemma4_lora.data import _chat_task
from gemma4_lora.data import _malformed
from gemma4_lora.data import _row_task
from gemma4_lora.data.conversations import _conversation
from gemma4_lora.data.conversations import _same_prompt
from gemma4_lora.data.layouts import _columns
from gemma4_lora.data.layouts import _fields
from gemma4_lora.data.layouts import _hh_rlhf
from gemma4_lora.data.layouts import _layout
from gemma4_lora.data.layouts import _layouts

Conversation = _conversation.Conversation


@dataclasses.dataclass(kw_only=True, frozen=True)
class AnswersTask(_row_task.ConversationTask, grain.MapTransform):
  """A prompt and its answers, rendered as `ChatTask` renders conversations.

  Attributes:
    layout: See `ChatTask`.
    in_prompt: Key of the prompt. None if answers are whole conversations.
    in_system: See `ChatTask`.
    in_tools: See `ChatTask`.
    in_images: Key of the images of the prompt, see `ChatTask`.
    max_images: See `ChatTask`, also for the next two.
    max_soft_tokens: The most tokens of an image.
    patch_size: Patch size of the vision tower, in pixels.
    out_input: Key to write the model's input to.
    out_target: Key to write the labels to.
    out_target_mask: Key to write the mask of the answers to.
    out_images: Key to write the patches of images to.
    tokenizer: A Gemma 4 tokenizer.
    max_length: Length of each conversation, in tokens.
    truncate: Whether to cut longer ones at the end. If False they are an error.
    thinking: See `ChatTask`.
    template: See `ChatTask`.
    enable_thinking: See `ChatTask`; rows may say it, too.
    template_kwargs: See `ChatTask`.
  """

  layout: str = 'prompt_response'

  in_prompt: kd.kontext.Key | None = 'prompt'
  in_system: kd.kontext.Key | None = None
  in_tools: kd.kontext.Key | None = None
  in_images: kd.kontext.Key | None = None

  max_images: int = 1
  max_soft_tokens: int = 280
  patch_size: int = 16

  out_input: kd.kontext.Key = 'input'
  out_target: kd.kontext.Key = 'target'
  out_target_mask: kd.kontext.Key = 'loss_mask'
  out_images: kd.kontext.Key = 'images'

  tokenizer: gm.text.Tokenizer
  max_length: int
  truncate: bool = False

  thinking: str = 'keep'
  template: str = 'dialog'
  enable_thinking: bool = False
  template_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    name = type(self).__name__
    _malformed.check_limit(self.max_malformed, name=name)
    if self.in_prompt is None and not self._layout.is_chat:
      raise ValueError(
          f'{name}: layout={self.layout!r} needs `in_prompt=`. Whole'
          f' conversations are of {_layouts.chats()}.'
      )
    _ = self._chat  # Checks its arguments.

  def answered(self, element: Any, key: kd.kontext.Key) -> Conversation:
    """Returns the conversation that ends with the answer at a key.

    Raises:
      ValueError: An answer has no text of the model, or belongs to another
        prompt.
      KeyError: A field is missing.
    """
    self._check_is_no_dialogue(element, key)
    prompt = self._prompt(element)
    messages = list(prompt)
    self._layout.add_answer(element, key, before=messages)
    messages = _same_prompt.joined(
        prompt, messages, in_prompt=self.in_prompt, in_answer=key
    )
    conversation = self._layout.completed(
        Conversation(messages=tuple(messages)), element, self._columns
    )
    return self.rules.applied(conversation, thinking=self.thinking)

  def arrays(
      self, element: Any, conversations: list[Conversation]
  ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the arrays of conversations with one prompt, and its images.

    Returns:
      `[N L]` for each of `N` conversations, and further fields of the example.

    Raises:
      ValueError: One cannot be trained on.
      KeyError: A field is missing.
    """
    images = self._chat.read_images(
        element, num_images=conversations[0].num_images
    )
    of_each = [self._chat.fields_of(x, images) for x in conversations]
    arrays = {
        out: np.stack([fields[name].reshape(-1) for fields in of_each])
        for name, out in zip(_ARRAYS, self._out_arrays, strict=True)
    }
    return arrays, {} if images is None else {self.out_images: images.input}

  def array_specs(self, *shape: int) -> dict[str, Any]:
    """Returns the shapes of the arrays and the images, without data.

    Args:
      *shape: Shape of the arrays; the last axis is the length.
    """
    of_chat = self._chat.field_specs(shape[-1])
    specs: dict[str, Any] = {
        out: enp.ArraySpec(shape=shape, dtype=of_chat[name].dtype)
        for name, out in zip(_ARRAYS, self._out_arrays, strict=True)
    }
    if self.in_images is not None:
      specs[self.out_images] = of_chat[self._chat.out_images]
    return specs

  def _prompt(self, element: Any) -> list[_conversation.Message]:
    if self.in_prompt is None:
      return []
    is_column = self._layout.is_chat or self.layout == 'prompt_response'
    if is_column and _fields.get(element, self.in_prompt) is None:
      return []
    return self._layout.prompt(element, self.in_prompt)

  def _check_is_no_dialogue(self, element: Any, key: kd.kontext.Key) -> None:
    """Raises for a text that is a whole dialogue, which would not be parsed."""
    is_read = isinstance(self._layout, _hh_rlhf.HhRlhf)
    if not is_read and _hh_rlhf.is_dialogue(_fields.get(element, key)):
      raise ValueError(
          f"Field {key!r} is a dialogue in one text ('Human: ...'). Set"
          f" layout='hh_rlhf', and in_prompt=None if {key!r} has the prompt, too."
      )

  def _check(self) -> None:
    self._chat._check()  # pylint: disable=protected-access

  @functools.cached_property
  def _chat(self) -> _chat_task.ChatTask:
    """Renders each conversation."""
    return _chat_task.ChatTask(
        layout=self.layout,
        in_images=self.in_images,
        max_images=self.max_images,
        max_soft_tokens=self.max_soft_tokens,
        patch_size=self.patch_size,
        tokenizer=self.tokenizer,
        max_length=self.max_length,
        truncate=self.truncate,
        thinking=self.thinking,
        loss_on='last',
        template=self.template,
        enable_thinking=self.enable_thinking,
        template_kwargs=self.template_kwargs,
        **dataclasses.asdict(self.rules),
    )

  @functools.cached_property
  def _columns(self) -> _columns.Columns:
    return dataclasses.replace(
        self._chat._columns,  # pylint: disable=protected-access
        in_prompt=self.in_prompt or '',
        in_response=self._in_answers[0],
        in_system=self.in_system,
        in_tools=self.in_tools,
    )

  @property
  def _layout(self) -> _layout.Layout:
    return _layouts.by_name(self.layout)

  @property
  def _out_arrays(self) -> tuple[str, ...]:
    return self.out_input, self.out_target, self.out_target_mask

  @property
  def _in_keys(self) -> list[str]:
    keys = [self.in_prompt, self.in_system, self.in_tools, self.in_images]
    if not self._layout.is_chat:
      keys += self._layout.conversation_keys(self._columns)
    keys += self._in_answers
    keys += self._columns.of_template
    return [key for key in dict.fromkeys(keys) if key is not None]

  @property
  @abc.abstractmethod
  def _in_answers(self) -> tuple[str, ...]:
    """Keys of the answers and of their labels."""


# Their names in `ChatTask`.
_ARRAYS = ('input', 'target', 'loss_mask')
