"""The interface of layouts: how the fields of a row hold a conversation."""

import abc
import dataclasses
from typing import Any
from typing import ClassVar

from kauldron import kd

from gemma4_lora.data.conversations import _conversation
from gemma4_lora.data.layouts import _columns
from gemma4_lora.data.layouts import _fields
from gemma4_lora.data.layouts import _template_fields
from gemma4_lora.data.layouts import _tool_fields

Columns = _columns.Columns
Conversation = _conversation.Conversation
Message = _conversation.Message


class Layout(abc.ABC):
  """How a dataset lays out conversations in rows.

  The docstring of `g4.data.ChatTask` includes those of the subclasses.

  Attributes:
    name: The value of `layout=`.
    in_messages: Default key of the messages; None if a conversation is a prompt
      and a response in fields of their own.
    text_keys: Keys of those two, if the task does not name them.
  """

  name: ClassVar[str]
  in_messages: ClassVar[str | None] = None
  text_keys: ClassVar[tuple[str, str]] = ('prompt', 'response')

  @property
  def is_chat(self) -> bool:
    """Whether a conversation is a list of messages in one field."""
    return self.in_messages is not None

  def keys(self, columns: Columns) -> list[kd.kontext.Key]:
    """Returns the keys of all fields that are read."""
    optional = (columns.in_system, columns.in_tools)
    keys = self.conversation_keys(columns)
    return keys + [key for key in optional if key is not None]

  def conversation(self, row: Any, columns: Columns) -> Conversation:
    """Returns the conversation of a row, with its system text and its tools.

    Raises:
      ValueError: A field does not hold what the layout wants.
      KeyError: A field is missing.
    """
    return self.completed(self.parse(row, columns), row, columns)

  def completed(
      self, conversation: Conversation, row: Any, columns: Columns
  ) -> Conversation:
    """Returns a conversation with what the row says in fields of its own.

    Those are a system text, tools, and arguments of the template.

    Raises:
      ValueError: A field does not hold what the layout wants.
      KeyError: A field is missing.
    """
    tools = (
        None if columns.in_tools is None else _fields.get(row, columns.in_tools)
    )
    conversation = dataclasses.replace(
        conversation,
        tools=self.tools(tools),
        template_kwargs=_template_fields.template_kwargs(
            row,
            in_template_kwargs=columns.in_template_kwargs,
            in_enable_thinking=columns.in_enable_thinking,
        ),
    )
    if columns.in_system is None:
      return conversation
    text = _fields.get(row, columns.in_system)
    if text is None or isinstance(text, str) and not text.strip():
      return conversation  # The row has none.
    text = _fields.text(text, field=columns.in_system)
    return _with_system(conversation, text, field=columns.in_system)

  @abc.abstractmethod
  def conversation_keys(self, columns: Columns) -> list[kd.kontext.Key]:
    """Returns the keys of the fields that `parse` reads."""

  @abc.abstractmethod
  def parse(self, row: Any, columns: Columns) -> Conversation:
    """Returns the conversation, without system text and tools of other fields.

    Raises:
      ValueError: A field does not hold what the layout wants.
      KeyError: A field is missing.
    """

  def tools(self, value: Any) -> tuple[dict[str, Any], ...]:
    """Returns the tools that a field declares.

    Raises:
      ValueError: They are not tools.
    """
    return _tool_fields.parse_tools(value)

  @abc.abstractmethod
  def prompt(self, row: Any, key: kd.kontext.Key) -> list[Message]:
    """Returns the messages of the prompt of a row with answers.

    Raises:
      ValueError: A field does not hold what the layout wants.
      KeyError: A field is missing.
    """

  @abc.abstractmethod
  def add_answer(
      self, row: Any, key: kd.kontext.Key, *, before: list[Message]
  ) -> None:
    """Adds the messages of an answer to those of its prompt.

    They may be a whole conversation, which repeats the prompt.

    Args:
      row: The row.
      key: Field of the answer.
      before: Messages of the prompt.

    Raises:
      ValueError: A field does not hold what the layout wants.
      KeyError: A field is missing.
    """

  @abc.abstractmethod
  def write(
      self, prompt: str | None, answer: str, *, num_images: int | None = None
  ) -> Any:
    """Returns an answer in the dataset's form.

    Args:
      prompt: Goes before the answer if it is a chat; None for an answer alone.
      answer: The model's text.
      num_images: How many images go before the prompt. None for a dataset
        without images.
    """


def _with_system(
    conversation: Conversation, text: str, *, field: str
) -> Conversation:
  """Returns the conversation after a system message.

  Raises:
    ValueError: It already has one.
  """
  if conversation.messages and conversation.messages[0].role == 'system':
    raise ValueError(
        f'Field {field!r} is a second system message: the messages begin with'
        ' one. Drop `in_system=`, or the message.'
    )
  parts = _conversation.parse_text(text, role='system', field=field)
  system = _conversation.Message(role='system', parts=tuple(parts), field=field)
  return dataclasses.replace(
      conversation, messages=(system, *conversation.messages)
  )
