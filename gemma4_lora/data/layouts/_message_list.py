"""Layouts whose conversations are lists of messages."""

import abc
from collections.abc import Mapping
import json
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

# Fields of the role. A dict of lists has a list there.
_ROLES = ('role', 'from')


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
    """Returns a message; None if it was added to the message before it.

    Raises:
      ValueError: It is malformed.
    """

  @abc.abstractmethod
  def message(
      self, name: str, text: str, *, num_images: int | None = None
  ) -> dict[str, Any]:
    """Returns a message in the dataset's form.

    Args:
      name: One of `roles`.
      text: The text.
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
    self._add_all(items, field=key, before=messages)
    return Conversation(messages=tuple(messages))

  def prompt(self, row: Any, key: kd.kontext.Key) -> list[Message]:
    messages: list[Message] = []
    items = self._items('user', _fields.get(row, key), field=key)
    self._add_all(items, field=key, before=messages)
    return messages

  def add_answer(
      self, row: Any, key: kd.kontext.Key, *, before: list[Message]
  ) -> None:
    value = _fields.get(row, key)
    if not before and isinstance(value, str):
      value = _fields.from_json(value, field=key)  # No answer to nothing.
    self._add_all(
        self._items('model', value, field=key), field=key, before=before
    )

  def write(
      self, prompt: str | None, answer: str, *, num_images: int | None = None
  ) -> list[dict[str, Any]]:
    messages = [self.message(self._name_of('model'), answer)]
    if prompt is None:
      return messages
    user = self._name_of('user')
    return [self.message(user, prompt, num_images=num_images), *messages]

  def _items(
      self, name: str, value: Any, *, field: str
  ) -> list[dict[str, Any]]:
    """Returns the messages of a field, which may be one, or its text."""
    if isinstance(value, str):
      if not value.lstrip().startswith(('[{', '{')):
        return [self.message(name, value)]
      return _items_in(value) or [self.message(name, value)]
    return [value] if _is_item(value) else _fields.dicts(value, field=field)

  def _add_all(
      self, items: list[dict[str, Any]], *, field: str, before: list[Message]
  ) -> None:
    for i, item in enumerate(items):
      self._add(item, field=f'{field}[{i}]', before=before)

  def _add(
      self, item: dict[str, Any], *, field: str, before: list[Message]
  ) -> None:
    message = self.parse_message(item, field=field, before=before)
    if message is not None:
      before.append(message)

  def _key(self, columns: Columns) -> kd.kontext.Key:
    key = columns.in_messages or self.in_messages
    assert key is not None  # A chat has a default.
    return key

  def _name_of(self, role: str) -> str:
    return next(name for name, ours in self.roles.items() if ours == role)


def _is_item(value: Any) -> bool:
  if not isinstance(value, dict):
    return False
  return any(isinstance(value.get(key), str) for key in _ROLES)


def _items_in(text: str) -> list[dict[str, Any]]:
  """Returns the messages that a text holds as JSON; none if it is an answer."""
  try:
    value = json.loads(text)
  except (ValueError, RecursionError):
    return []
  items = value if isinstance(value, list) else [value]
  return items if all(map(_is_item, items)) else []
