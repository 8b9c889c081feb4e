"""Which fields of a row hold a conversation, and how they are read."""

from collections.abc import Sequence
import dataclasses
from typing import Any

from kauldron import kd

from gemma4_lora.data.conversations import _conversation
from gemma4_lora.data.conversations import _fields
from gemma4_lora.data.conversations import _layouts

_IN_MESSAGES = {'messages': 'messages', 'sharegpt': 'conversations'}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns:
  """Fields of a conversation; for the attributes see `ChatTask`."""

  layout: str
  in_prompt: kd.kontext.Key
  in_response: kd.kontext.Key
  in_messages: kd.kontext.Key | None
  in_system: kd.kontext.Key | None
  in_tools: kd.kontext.Key | None

  def __post_init__(self):
    if self.in_messages is not None and self.layout == 'prompt_response':
      raise ValueError(
          f'ChatTask: in_messages={self.in_messages!r} is of other layouts than'
          " layout='prompt_response'. Write layout='messages' or"
          " layout='sharegpt'."
      )

  @property
  def keys(self) -> Sequence[kd.kontext.Key]:
    """All that are read."""
    keys = [self.in_prompt, self.in_response]
    if self.layout != 'prompt_response':
      keys = [self.messages_key]
    return keys + [k for k in (self.in_system, self.in_tools) if k is not None]

  @property
  def messages_key(self) -> kd.kontext.Key:
    """Key of the messages, of the layouts that have some."""
    return self.in_messages or _IN_MESSAGES[self.layout]

  def conversation(self, element: Any) -> _conversation.Conversation:
    """Returns what the row says, whatever its layout.

    Raises:
      ValueError: Fields that say nothing.
      KeyError: A field is missing.
    """
    tools = (
        None if self.in_tools is None else _fields.get(element, self.in_tools)
    )
    if self.layout == 'prompt_response':
      conversation = _layouts.from_texts(
          _fields.get_text(element, self.in_prompt),
          _fields.get_text(element, self.in_response),
          in_prompt=self.in_prompt,
          in_response=self.in_response,
      )
      conversation = dataclasses.replace(
          conversation, tools=_layouts.parse_tools(tools)
      )
    else:
      conversation = _layouts.from_messages(
          _fields.get(element, self.messages_key),
          field=self.messages_key,
          layout=self.layout,
          tools=tools,
      )
    if self.in_system is None:
      return conversation
    text = _fields.get_text(element, self.in_system)
    return _layouts.with_system(conversation, text, field=self.in_system)
