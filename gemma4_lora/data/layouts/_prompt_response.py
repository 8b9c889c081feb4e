"""Rows of a prompt and its response, two texts or two lists of messages."""

import dataclasses
from typing import Any

from kauldron import kd

from gemma4_lora.data.conversations import _conversation
from gemma4_lora.data.conversations import _same_prompt
from gemma4_lora.data.layouts import _columns
from gemma4_lora.data.layouts import _fields
from gemma4_lora.data.layouts import _layout
from gemma4_lora.data.layouts import _messages

Columns = _columns.Columns
Conversation = _conversation.Conversation
Message = _conversation.Message

_MESSAGES = _messages.Messages()


class PromptResponse(_layout.Layout):
  """two texts, at `in_prompt` and `in_response`.

  Or two lists of messages, as TRL has them at `prompt` and `completion`: those of
  the prompt are not trained.
  """

  name = 'prompt_response'

  def conversation_keys(self, columns: Columns) -> list[kd.kontext.Key]:
    return [columns.in_prompt, columns.in_response]

  def parse(self, row: Any, columns: Columns) -> Conversation:
    prompt = [
        dataclasses.replace(message, weight=0.0)
        for message in self.prompt(row, columns.in_prompt)
    ]
    messages = list(prompt)
    self.add_answer(row, columns.in_response, before=messages)
    messages = _same_prompt.joined(
        prompt,
        messages,
        in_prompt=columns.in_prompt,
        in_answer=columns.in_response,
    )
    return Conversation(messages=tuple(messages))

  def prompt(self, row: Any, key: kd.kontext.Key) -> list[Message]:
    value = _fields.get(row, key)
    if _is_messages(value):
      return _MESSAGES.prompt(row, key)
    return [_message('user', value, field=key)]

  def add_answer(
      self, row: Any, key: kd.kontext.Key, *, before: list[Message]
  ) -> None:
    value = _fields.get(row, key)
    if _is_messages(value):
      _MESSAGES.add_answer(row, key, before=before)
    else:
      before.append(_message('model', value, field=key))

  def write(
      self, prompt: str | None, answer: str, *, num_images: int | None = None
  ) -> str:
    del prompt, num_images  # In a field of its own.
    return answer


def from_texts(
    prompt: str, response: str, *, in_prompt: str, in_response: str
) -> Conversation:
  """Returns the conversation of a prompt and its response.

  Args:
    prompt: What the user says.
    response: What the model says.
    in_prompt: Field of the prompt, for errors.
    in_response: Field of the response, for errors.

  Raises:
    ValueError: One of them has a turn tag or half a thought.
  """
  return Conversation(
      messages=(
          _message('user', prompt, field=in_prompt),
          _message('model', response, field=in_response),
      )
  )


def _is_messages(value: Any) -> bool:
  if isinstance(value, list):
    return bool(value) and all(isinstance(item, dict) for item in value)
  return isinstance(value, dict)


def _message(role: str, text: Any, *, field: str) -> Message:
  text = _fields.text(text, field=field)
  parts = _conversation.parse_text(text, role=role, field=field)
  return Message(role=role, parts=tuple(parts), field=field)
