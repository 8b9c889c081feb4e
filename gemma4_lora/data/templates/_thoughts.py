"""Which thoughts stay, and how each is written."""

from collections.abc import Sequence
import dataclasses

from absl import logging

from gemma4_lora.data.conversations import _conversation
from gemma4_lora.data.conversations import _spans
from gemma4_lora.data.templates import _style

OPEN = '<|channel>thought\n'
CLOSE = '<channel|>'
EMPTY = OPEN + CLOSE


def kept(
    message: _conversation.Message, style: _style.Style, *, is_last: bool
) -> list[_conversation.Part]:
  """Returns the parts of a message, with its thoughts if they stay.

  Args:
    message: The message.
    style: Its `thinking` decides; the template's `preserve_thinking` lets the
      thoughts before calls be as those of the last turn.
    is_last: Whether the message belongs to the model's last turn.
  """
  parts = message.parts
  if style.thinking in ('keep', 'mask'):
    return list(parts)
  preserves = style.template_kwargs.get('preserve_thinking')
  if style.thinking == 'strip' and (is_last or (preserves and message.calls)):
    return list(parts)
  return _without_thoughts(parts)


def num_leading(parts: Sequence[_conversation.Part]) -> int:
  """Returns how many thoughts come before all else: those of a field."""
  for i, part in enumerate(parts):
    if not isinstance(part, _conversation.Thought) or part.is_inline:
      return i
  return len(parts)


def warn_of_none(field: str) -> None:
  """Says once that a message has no thought where its server begins one."""
  logging.log_first_n(
      logging.WARNING,
      'Field %r has no thought, and behind the answer of a tool its server begins'
      ' one, as enable_thinking is True: the prompt of that server is not what is'
      ' trained. Give such messages thoughts (`reasoning`), or turn thinking off'
      ' for such rows. Said once.',
      1,
      field,
  )


def span(
    thought: _conversation.Thought,
    style: _style.Style,
    weight: float,
    *,
    end: str = '',
) -> _spans.Span:
  """Returns a thought in its tags, with a loss if thoughts are trained."""
  text = f'{OPEN}{thought.text}{end}{CLOSE}'
  return _spans.Span(text, 0.0 if style.thinking == 'mask' else weight)


def _without_thoughts(
    parts: Sequence[_conversation.Part],
) -> list[_conversation.Part]:
  """Drops thoughts, and joins the texts around each."""
  left: list[_conversation.Part] = []
  for part in parts:
    last = left[-1] if left else None
    if isinstance(part, _conversation.Thought):
      continue
    if (
        isinstance(part, _conversation.Text)
        and isinstance(last, _conversation.Text)
        and part.item == last.item
    ):
      part = dataclasses.replace(last, text=last.text + part.text)
      left.pop()
    left.append(part)
  return left
