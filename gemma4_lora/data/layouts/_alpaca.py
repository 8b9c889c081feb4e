"""Rows of an instruction, its input and the output, as Stanford Alpaca has them."""

from collections.abc import Mapping
from typing import Any

from kauldron import kd

from gemma4_lora.data.conversations import _conversation
from gemma4_lora.data.layouts import _columns
from gemma4_lora.data.layouts import _fields
from gemma4_lora.data.layouts import _layout

Columns = _columns.Columns
Conversation = _conversation.Conversation
Message = _conversation.Message

_INPUT, _SYSTEM, _HISTORY = 'input', 'system', 'history'


class Alpaca(_layout.Layout):
  """texts at `instruction`, `input` and `output`.

  An input that is not empty follows the instruction on a line of its own. Rows
  may have a `system` text, and a `history` of pairs, the earlier turns.
  `in_prompt` and `in_response` take the place of `instruction` and `output`.
  """

  name = 'alpaca'

  def conversation_keys(self, columns: Columns) -> list[kd.kontext.Key]:
    names = ['instruction', 'output', columns.in_prompt, columns.in_response]
    return [*dict.fromkeys(names), _INPUT, _SYSTEM, _HISTORY]

  def parse(self, row: Any, columns: Columns) -> Conversation:
    messages = []
    system = (
        _fields.get_optional(row, _SYSTEM)
        if columns.in_system is None
        else None
    )
    if system:
      messages.append(_message('system', system, field=_SYSTEM))
    for i, pair in enumerate(_pairs(row)):
      field = f'{_HISTORY}[{i}]'
      messages.append(_message('user', pair[0], field=f'{field}[0]'))
      messages.append(_message('model', pair[1], field=f'{field}[1]'))
    key = _key(row, columns.in_prompt, default='prompt', name='instruction')
    messages.append(_message('user', _prompt(row, key), field=key))
    key = _key(row, columns.in_response, default='response', name='output')
    answer = _fields.get_text(row, key)
    messages.append(_message('model', answer, field=key))
    return Conversation(messages=tuple(messages))

  def read_answer(
      self,
      row: Any,
      *,
      in_prompt: kd.kontext.Key | None,
      in_answer: kd.kontext.Key,
  ) -> tuple[str | None, Any]:
    assert in_prompt is not None  # See `PreferenceTask`.
    for name in (_SYSTEM, _HISTORY):
      if _fields.get_optional(row, name):
        raise ValueError(
            f'Field {name!r} of an alpaca row is not read where one of two'
            ' answers is preferred. Use layout="messages".'
        )
    key = _key(row, in_prompt, default='prompt', name='instruction')
    return _prompt(row, key), _fields.get_text(row, in_answer)

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
  """Returns what the user says: as LLaMA-Factory and ms-swift join the two."""
  instruction = _fields.get_text(row, key)
  given = _fields.get_optional(row, _INPUT)
  if given is None or not _fields.text(given, field=_INPUT).strip():
    return instruction
  return f'{instruction}\n{given}'


def _pairs(row: Any) -> list[list[Any]]:
  """Returns the earlier turns: what the user and the model said in each."""
  history = _fields.get_optional(row, _HISTORY)
  if history is None:
    return []
  if not isinstance(history, list) or not all(
      isinstance(pair, list) and len(pair) == 2 for pair in history
  ):
    raise ValueError(
        f'Field {_HISTORY!r} should be a list of pairs of texts. Got:'
        f' {history!r:.200}'
    )
  return history


def _message(role: str, text: Any, *, field: str) -> Message:
  text = _fields.text(text, field=field)
  parts = _conversation.parse_text(text, role=role, field=field)
  return Message(role=role, parts=tuple(parts), field=field)
