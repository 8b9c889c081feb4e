"""Texts of a message as Google's template trims them: entry by entry."""

from collections.abc import Sequence

from gemma4_lora.data.conversations import _conversation

Image = _conversation.Image
Part = _conversation.Part
Text = _conversation.Text


def texts(parts: Sequence[Part]) -> list[str]:
  """Returns the text of each part, trimmed at the ends of its entry.

  A thought among the texts is an edge as well. Thoughts themselves are `''`.
  """
  return [
      _trim(part, parts, i) if isinstance(part, Text) else _tag(part)
      for i, part in enumerate(parts)
  ]


def system(message: _conversation.Message) -> str:
  """Returns the text of the first system message.

  Raises:
    ValueError: It has images, which the template leaves out.
  """
  parts = message.parts
  if not message.is_list:
    return ''.join(texts(parts))
  entries: dict[int, str] = {}
  for part, text in zip(parts, texts(parts), strict=True):
    if isinstance(part, Image) and _is_own(part, parts):
      raise ValueError(
          'The system message has an image, which the template leaves out. Give'
          ' it in a message of the user.'
      )
    assert not isinstance(part, _conversation.Thought)  # Only the model's.
    entries[part.item] = entries.get(part.item, '') + text
  return ''.join(f'{entry} ' for entry in entries.values())


def _trim(part: Text, parts: Sequence[Part], i: int) -> str:
  before = parts[i - 1] if i else None
  after = parts[i + 1] if i + 1 < len(parts) else None
  text = part.text
  text = text.lstrip() if _is_edge(part, before) else text
  return text.rstrip() if _is_edge(part, after) else text


def _is_edge(text: Text, neighbour: Part | None) -> bool:
  """Whether a text ends where its neighbour begins."""
  if neighbour is None or isinstance(neighbour, _conversation.Thought):
    return True
  return neighbour.item != text.item


def _is_own(image: Image, parts: Sequence[Part]) -> bool:
  """Whether an image is an entry of its own, not a tag in a text."""
  return not any(
      isinstance(part, Text) and part.item == image.item for part in parts
  )


def _tag(part: Part) -> str:
  return _conversation.IMAGE_TAG if isinstance(part, Image) else ''
