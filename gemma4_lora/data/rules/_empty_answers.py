"""Refuses empty answers, which would train the model to be silent."""

import unicodedata

from gemma4_lora.data.conversations import _conversation

CHOICES = ('refuse', 'train')


def check(conversation: _conversation.Conversation, *, thinking: str) -> None:
  """Raises for an empty message of the model that has a loss weight.

  Thoughts count if they are trained; `thinking` leaves some out or masks them.

  Raises:
    ValueError: There is one.
  """
  messages = conversation.messages
  for i, message in enumerate(messages):
    if message.role != _conversation.MODEL or message.calls:
      continue
    if not message.weight:
      continue  # It trains nothing.
    thoughts = False
    for part in message.parts:
      if isinstance(part, _conversation.Thought):
        thoughts = thoughts or says_something(part.text)
      elif isinstance(part, _conversation.Image) or says_something(part.text):
        break
    else:
      if not thoughts:
        raise ValueError(
            f'Field {message.field!r} is an empty answer, which would train the'
            ' model to end its turn at once. Remove the row, or set'
            " `empty_answers='train'` if silence is meant."
        )
      if not _trains_thoughts(thinking, messages, i):
        raise ValueError(
            f'Field {message.field!r} is an answer of thoughts alone, and empty'
            f" with thinking={thinking!r}. Set thinking='keep', or"
            " `empty_answers='train'` if silence is meant."
        )


def says_something(text: str) -> bool:
  """Whether a person sees anything: no spaces, no zero-width characters."""
  return any(not c.isspace() and unicodedata.category(c) != 'Cf' for c in text)


def _trains_thoughts(
    thinking: str, messages: tuple[_conversation.Message, ...], i: int
) -> bool:
  if thinking == 'strip':  # Those of the last turn are kept.
    return all(m.role == _conversation.MODEL for m in messages[i:])
  return thinking == 'keep'
