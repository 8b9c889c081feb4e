"""Layouts whose conversations are lists of messages."""

import abc
from collections.abc import Mapping
from typing import Any
from typing import ClassVar

from kauldron import kd

from gemma4_lora.data.conversations import _conversation
from gemma4_lora.data.layouts import _columns
from gemma4_lora.data.layouts import _fields
from gemma4_lora.data.layouts import _layout

Columns = _columns.Columns
Conversation = _conversation.Conversation
Message = _conversation.Message


class MessageList(_layout.Layout):
  """A list of messages in one field.

  Attributes:
    roles: Our role of each name that datasets use. Our own names `'user'` and
      `'model'` are among them. The first name of a role is the one to write.
  """

  roles: ClassVar[Mapping[str, str]]

  @abc.abstractmethod
  def parse_message(
      self, item: dict[str, Any], *, field: str, before: list[Message]
  ) -> Message | None:
    """Returns a message; None if it was added to the last of those before.

    Raises:
      ValueError: It is malformed.
    """

  @abc.abstractmethod
  def message(
      self, name: str, text: str, *, num_images: int | None = None
  ) -> dict[str, Any]:
    """Returns a message as datasets hold it.

    Args:
      name: One of `roles`.
      text: What is said.
      num_images: How many images go before it. None for a dataset without
        images.
    """

  def conversation_keys(self, columns: Columns) -> list[kd.kontext.Key]:
    return [self._key(columns)]

  def parse(self, row: Any, columns: Columns) -> Conversation:
    key = self._key(columns)
    items = _fields.dicts(_fields.get(row, key), field=key)
    if not items:
      raise ValueError(f'Field {key!r} has no messages.')
    messages: list[Message] = []
    for i, item in enumerate(items):
      message = self.parse_message(item, field=f'{key}[{i}]', before=messages)
      if message is not None:
        messages.append(message)
    return Conversation(messages=tuple(messages))

  def read_answer(
      self,
      row: Any,
      *,
      in_prompt: kd.kontext.Key | None,
      in_answer: kd.kontext.Key,
  ) -> tuple[None, list[dict[str, Any]]]:
    answer = _fields.get(row, in_answer)
    if in_prompt is None:
      return None, _fields.dicts(answer, field=in_answer)
    messages = self._messages('model', answer, field=in_answer)
    prompt = self._messages(
        'user', _fields.get(row, in_prompt), field=in_prompt
    )
    if messages[: len(prompt)] != prompt:
      messages = [*prompt, *messages]
    return None, messages

  def write(
      self, prompt: str | None, answer: str, *, num_images: int | None = None
  ) -> list[dict[str, Any]]:
    messages = [self.message(self._name_of('model'), answer)]
    if prompt is None:
      return messages
    user = self._name_of('user')
    return [self.message(user, prompt, num_images=num_images), *messages]

  def _messages(
      self, name: str, value: Any, *, field: str
  ) -> list[dict[str, Any]]:
    """Returns the messages of a field, which may be the text of one."""
    if isinstance(value, str):
      return [self.message(name, value)]
    return _fields.dicts(value, field=field)

  def _key(self, columns: Columns) -> kd.kontext.Key:
    key = columns.in_messages or self.in_messages
    assert key is not None  # A chat has a default.
    return key

  def _name_of(self, role: str) -> str:
    return next(name for name, ours in self.roles.items() if ours == role)
