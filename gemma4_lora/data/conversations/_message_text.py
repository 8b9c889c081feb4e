"""What one message says, as each template writes it."""

from collections.abc import Sequence
import dataclasses

from gemma4_lora.data.conversations import _conversation
from gemma4_lora.data.conversations import _spans
from gemma4_lora.data.conversations import _style

Part = _conversation.Part
Span = _spans.Span
Text = _conversation.Text
Thought = _conversation.Thought


@dataclasses.dataclass(frozen=True)
class Said:
  """What a message says before its calls of tools, and after them."""

  before: list[Span]
  after: list[Span]


def said(
    message: _conversation.Message,
    style: _style.Style,
    *,
    weight: float,
    is_last_turn: bool,
) -> Said:
  """Returns what a message says, without calls and their responses.

  Args:
    message: Its parts are rendered.
    style: Whose template, and what becomes of thoughts.
    weight: The loss weight of its tokens.
    is_last_turn: Whether it belongs to the model's last turn.
  """
  parts = list(message.parts)
  if not _keeps_thoughts(style.thinking, is_last_turn=is_last_turn):
    parts = _without_thoughts(parts)
  spans = [_span(part, style, weight) for part in parts]
  if style.like_dialog:
    return Said(before=spans, after=[])
  spans = _stripped(spans, parts, message)
  # Thoughts come before the calls, the text after them.
  number = _num_leading_thoughts(parts)
  return Said(before=spans[:number], after=spans[number:])


def _keeps_thoughts(thinking: str, *, is_last_turn: bool) -> bool:
  return thinking in ('keep', 'mask') or thinking == 'strip' and is_last_turn


def _span(part: Part, style: _style.Style, weight: float) -> Span:
  if isinstance(part, Thought):
    end = '' if style.like_dialog or part.is_inline else '\n'
    text = f'<|channel>thought\n{part.text}{end}<channel|>'
    return Span(text, 0.0 if style.thinking == 'mask' else weight)
  if isinstance(part, _conversation.Image):
    return Span(_conversation.IMAGE_TAG)
  return Span(part.text, weight)


def _without_thoughts(parts: Sequence[Part]) -> list[Part]:
  """Drops thoughts, and joins the texts around each."""
  kept: list[Part] = []
  for part in parts:
    last = kept[-1] if kept else None
    if isinstance(part, Thought):
      continue
    if (
        isinstance(part, Text)
        and isinstance(last, Text)
        and part.item == last.item
    ):
      part = dataclasses.replace(last, text=last.text + part.text)
      kept.pop()
    kept.append(part)
  return kept


def _stripped(
    spans: Sequence[Span],
    parts: Sequence[Part],
    message: _conversation.Message,
) -> list[Span]:
  """Returns the spans as Hugging Face's template, which strips texts.

  A list of texts is stripped one by one; so is each side of a thought.
  """
  stripped = []
  for i, (span, part) in enumerate(zip(spans, parts, strict=True)):
    if isinstance(part, Text):
      before = parts[i - 1] if i else None
      after = parts[i + 1] if i + 1 < len(parts) else None
      text = span.text
      text = text.lstrip() if _is_edge(part, before) else text
      text = text.rstrip() if _is_edge(part, after) else text
      if message.role == 'system' and message.is_list:
        text += ' '
      span = Span(text, span.weight)
    stripped.append(span)
  return stripped


def _is_edge(text: Text, neighbour: Part | None) -> bool:
  """Whether a text ends where its neighbour begins."""
  if neighbour is None or isinstance(neighbour, Thought):
    return True
  return neighbour.item != text.item


def _num_leading_thoughts(parts: Sequence[Part]) -> int:
  for i, part in enumerate(parts):
    if not isinstance(part, Thought) or part.is_inline:
      return i
  return len(parts)
