"""Rows of an instruction, its input and the output, as Stanford Alpaca has them."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from kauldron import kd

from gemma4_lora.data.conversations import _conversation
from gemma4_lora.data.layouts import _columns
from gemma4_lora.data.layouts import _fields
from gemma4_lora.data.layouts import _layout

Columns = _columns.Columns
Conversation = _conversation.Conversation
Message = _conversation.Message

_SYSTEM, _HISTORY = 'system', 'history'
# Stanford Alpaca's name, and Dolly's.
_INPUTS = ('input', 'context')


class Alpaca(_layout.Layout):
  """texts at `instruction`, `input` and `output`.

  An input that is not empty follows the instruction on a line of its own. Rows
  may have a `system` text, and a `history` of pairs, the earlier turns.
  `in_prompt` and `in_response` take the place of `instruction` and `output`;
  Dolly's `context` and `response` are read, too.
  """

  name = 'alpaca'
  text_keys = ('instruction', 'output')

  def conversation_keys(self, columns: Columns) -> list[kd.kontext.Key]:
    names = [*self.text_keys, columns.in_prompt, columns.in_response]
    return [*dict.fromkeys(names), *_INPUTS, _SYSTEM, _HISTORY]

  def parse(self, row: Any, columns: Columns) -> Conversation:
    messages = self.prompt(row, columns.in_prompt)
    key = _key(row, columns.in_response, default='response', name='output')
    self.add_answer(row, key, before=messages)
    return Conversation(messages=tuple(messages))

  def completed(
      self, conversation: Conversation, row: Any, columns: Columns
  ) -> Conversation:
    system = _fields.get_optional(row, _SYSTEM)
    if system is not None and columns.in_system is None:
      columns = dataclasses.replace(columns, in_system=_SYSTEM)
    return super().completed(conversation, row, columns)

  def prompt(self, row: Any, key: kd.kontext.Key) -> list[Message]:
    messages = []
    for i, pair in enumerate(_pairs(row)):
      field = f'{_HISTORY}[{i}]'
      messages.append(_message('user', pair[0], field=f'{field}[0]'))
      messages.append(_message('model', pair[1], field=f'{field}[1]'))
    key = _key(row, key, default='prompt', name='instruction')
    messages.append(_message('user', _prompt(row, key), field=key))
    return messages

  def add_answer(
      self, row: Any, key: kd.kontext.Key, *, before: list[Message]
  ) -> None:
    text = _fields.get_text(row, key)
    before.append(_message('model', text, field=key))

  def write(
      self, prompt: str | None, answer: str, *, num_images: int | None = None
  ) -> str:
    del prompt, num_images  # In a field of its own.
    return answer


def _key(row: Any, given: str, *, default: str, name: str) -> str:
  """Returns the key to read: the layout's own, unless another is given."""
  if given != default or isinstance(row, Mapping) and given in row:
    return given
  return name


def _prompt(row: Any, key: str) -> str:
  """Returns instruction and input, joined as in LLaMA-Factory and ms-swift."""
  instruction = _fields.get_text(row, key)
  name = next((x for x in _INPUTS if x in row), _INPUTS[0])
  given = _fields.get_optional(row, name)
  if given is None or not _fields.text(given, field=name).strip():
    return instruction
  if not instruction.strip():
    return given
  return f'{instruction}\n{given}'


def _pairs(row: Any) -> list[list[Any]]:
  """Returns the earlier turns of user and model."""
  history = _fields.get_optional(row, _HISTORY)
  if isinstance(history, str):
    history = history.strip() and _fields.from_json(history, field=_HISTORY)
  if history is None or isinstance(history, str) and not history:
    return []
  if not isinstance(history, list) or not all(
      isinstance(pair, list) and len(pair) == 2 for pair in history
  ):
    raise ValueError(
        f'Field {_HISTORY!r} should be a list of pairs of texts. Got:'
        f' {_fields.short(history)}'
    )
  return history


def _message(role: str, text: Any, *, field: str) -> Message:
  text = _fields.text(text, field=field)
  parts = _conversation.parse_text(text, role=role, field=field)
  return Message(role=role, parts=tuple(parts), field=field)
