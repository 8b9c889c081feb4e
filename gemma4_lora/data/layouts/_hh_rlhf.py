"""Dialogues as one text, as Anthropic's hh-rlhf has them."""

import re
from typing import Any

from kauldron import kd

from gemma4_lora.data.conversations import _conversation
from gemma4_lora.data.layouts import _columns
from gemma4_lora.data.layouts import _fields
from gemma4_lora.data.layouts import _layout

Columns = _columns.Columns
Conversation = _conversation.Conversation
Message = _conversation.Message

_SPEAKER = re.compile(r'(?:\A\s*|\n\n)(Human|Assistant):')
_ROLES = {'Human': 'user', 'Assistant': 'model'}


class HhRlhf(_layout.Layout):
  r"""one text, `"\n\nHuman: Hello\n\nAssistant: Hi"`, at `in_messages`.

  White space around each text belongs to the format and is removed. The default
  of `in_messages` is `chosen`. A prompt in a field of its own may end with
  `"\n\nAssistant:"`.
  """

  name = 'hh_rlhf'
  in_messages = 'chosen'

  def conversation_keys(self, columns: Columns) -> list[kd.kontext.Key]:
    return [columns.in_messages or self.in_messages]

  def parse(self, row: Any, columns: Columns) -> Conversation:
    (key,) = self.conversation_keys(columns)
    text = _fields.get_text(row, key)
    if not is_dialogue(text):
      raise ValueError(
          f"Field {key!r} does not begin with 'Human:'. Is `layout=` the right"
          f' one? Got: {_fields.short(text)}'
      )
    return Conversation(messages=tuple(_messages(text, 'model', field=key)))

  def prompt(self, row: Any, key: kd.kontext.Key) -> list[Message]:
    messages = _messages(_fields.get_text(row, key), 'user', field=key)
    if messages and messages[-1].role == 'model' and not messages[-1].parts:
      messages.pop()  # The place of the answer.
    return messages

  def add_answer(
      self, row: Any, key: kd.kontext.Key, *, before: list[Message]
  ) -> None:
    before += _messages(_fields.get_text(row, key), 'model', field=key)

  def write(
      self, prompt: str | None, answer: str, *, num_images: int | None = None
  ) -> str:
    said = f'\n\nAssistant: {answer}'
    if prompt is None:
      return said
    tags = _conversation.IMAGE_TAG * (num_images or 0)
    return f'\n\nHuman: {tags}{prompt}{said}'


def is_dialogue(text: Any) -> bool:
  """Whether a value is a text of this layout."""
  return isinstance(text, str) and _SPEAKER.match(text) is not None


def _messages(text: str, role: str, *, field: str) -> list[Message]:
  """Returns the messages of a dialogue, or that of a text of one side."""
  first, *others = _SPEAKER.split(text)
  pairs = list(zip(others[::2], others[1::2], strict=True))
  said = [(_ROLES[speaker], text) for speaker, text in pairs]
  if first.strip() or not said:
    said.insert(0, (role, first))
  messages = []
  for i, (role, text) in enumerate(said):
    where = f'{field}[{i}]' if pairs else field
    parts = _conversation.parse_text(text.strip(), role=role, field=where)
    messages.append(Message(role=role, parts=tuple(parts), field=where))
  return messages
