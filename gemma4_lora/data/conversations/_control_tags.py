"""Tags of Gemma 4's vocabulary, which are refused in texts of rows.

A tag in a text is a token, whoever wrote the text. In a tool's answer,
`<turn|>` would end the turn, and the text after it could pose as any role.
"""

from collections.abc import Collection
import re
from typing import Any

from gemma4_lora.data.conversations import _choices

TURN_TAGS = ('<|turn>', '<turn|>')
CHANNEL_OPEN = '<|channel>'
CHANNEL_CLOSE = '<channel|>'
IMAGE_TAG = '<|image|>'
THINK = '<|think|>'

# Tags with a place in a conversation. (gemma 4.0.1, dialog 1.1.0)
STRUCTURE = (
    *TURN_TAGS,
    CHANNEL_OPEN,
    CHANNEL_CLOSE,
    '<|tool>',
    '<tool|>',
    '<|tool_call>',
    '<tool_call|>',
    '<|tool_response>',
    '<tool_response|>',
    '<|"|>',
    THINK,
    '<|image>',
    '<image|>',
    IMAGE_TAG,
    '<|audio>',
    '<audio|>',
    '<|audio|>',
    '<|video|>',
)
# Names of other control tokens. SentencePiece never makes the first four from a
# text, but the tokenizers of servers do.
NAMES = ('<pad>', '<eos>', '<bos>', '<unk>', '<mask>', '[multimodal]')
# How tokens without a meaning begin, which some give one of their own: `<unused0>`,
# … Among allowed tags it stands for all of them.
UNUSED = '<unused'
_IS_UNUSED = re.compile(r'<unused\d+>')


def check_allowed(tags: Collection[str]) -> None:
  """Raises ValueError for a tag that no text may have."""
  for tag in tags:
    if not _IS_UNUSED.fullmatch(tag):
      _choices.check_choice('allowed_tags', tag, (*NAMES, '<unused0>, …'))


def check(
    text: str,
    *,
    field: str,
    allowed: Collection[str] = (),
) -> None:
  """Raises for a text that has control tokens for the model.

  Args:
    text: Any text of a row.
    field: Its field, for the error.
    allowed: Tags that it may have.

  Raises:
    ValueError: It has a tag, or half a character.
  """
  if not text.isascii():
    _check_characters(text, field)
  # Most texts have neither; code and HTML have many `<`.
  if '<|' not in text and '|>' not in text and not _has_name(text):
    return
  for found in _TAGS.finditer(text):
    tag = found[0]
    is_unused = tag.startswith(UNUSED)
    if tag in allowed or (is_unused and UNUSED in allowed):
      continue
    if tag in TURN_TAGS:
      what = (
          f'the turn tag {tag!r} in its text, which would begin or end a turn in'
          ' the middle of it. Give bare text: the tags are added to it.'
      )
    else:
      what = (
          f'the control tag {tag!r} in its text, which is a token of its own.'
      )
      if tag in NAMES or is_unused:
        what += f' If it is meant, set `allowed_tags=({tag!r},)`.'
      elif tag == THINK:
        what += ' To let the model think, set `enable_thinking=True`.'
    at = max(found.start() - 80, 0)
    raise ValueError(
        f'Field {field!r} has {what} Remove or rewrite it in:'
        f' {text[at : at + 200]!r}'
    )


def check_all(value: Any, *, field: str, allowed: Collection[str] = ()) -> None:
  """Checks all texts in a value, keys too; see `check`."""
  if isinstance(value, str):
    check(value, field=field, allowed=allowed)
  elif isinstance(value, dict):
    for key, inner in value.items():
      if isinstance(key, str):
        check(key, field=f'{field}: a key', allowed=allowed)
      check_all(inner, field=f'{field}.{key}', allowed=allowed)
  elif isinstance(value, list | tuple):
    for i, inner in enumerate(value):
      check_all(inner, field=f'{field}[{i}]', allowed=allowed)


def _check_characters(text: str, field: str) -> None:
  try:
    text.encode()
  except UnicodeEncodeError as e:
    raise ValueError(
        f'Field {field!r} has half of a character in its text, the surrogate'
        f' {text[e.start]!r} without its other half. Was it cut, or written'
        f' with errors="surrogatepass"? In: {text[max(e.start - 80, 0) :][:160]!r}'
    ) from None


def _has_name(text: str) -> bool:
  if '<' not in text and '[' not in text:
    return False
  return any(name in text for name in (*NAMES, UNUSED))


_TAGS = re.compile(
    '|'.join([*map(re.escape, (*STRUCTURE, *NAMES)), _IS_UNUSED.pattern])
)
