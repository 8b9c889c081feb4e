"""A conversation, independent of the dataset's fields.

Messages are kept separate. Rendering makes turns of them, as the two renderers
join different ones.
"""

from collections.abc import Mapping
import dataclasses
import re
from typing import Any

from gemma4_lora.data.conversations import _control_tags

MODEL = 'model'
ROLES = ('system', 'user', MODEL)

_THOUGHT_OPEN = '<|channel>thought\n'
_CHANNEL_OPEN = _control_tags.CHANNEL_OPEN
_CHANNEL_CLOSE = _control_tags.CHANNEL_CLOSE
_THOUGHT = re.compile(
    re.escape(_THOUGHT_OPEN) + '(.*?)' + re.escape(_CHANNEL_CLOSE), re.DOTALL
)
IMAGE_TAG = _control_tags.IMAGE_TAG

# Tags that a text may have: they are read here, or checked later.
_READ = frozenset((IMAGE_TAG, _control_tags.UNUSED, *_control_tags.NAMES))
_READ_OF_MODEL = _READ | {_CHANNEL_OPEN, _CHANNEL_CLOSE}


@dataclasses.dataclass(frozen=True)
class Text:
  """Text, without tags.

  Attributes:
    text: The text, unchanged.
    item: Its entry of the content, if that was a list.
  """

  text: str
  item: int = 0


@dataclasses.dataclass(frozen=True)
class Thought:
  """A thought of the model.

  Attributes:
    text: Without tags.
    is_inline: Whether it was in the text with its tags, and not in its own
      field.
    found: Its place, if it is only read with `inline_markup='parse'`.
  """

  text: str
  is_inline: bool = False
  found: str = ''


@dataclasses.dataclass(frozen=True)
class Image:
  """The place of an image, and its entry of the content."""

  item: int = 0


Part = Text | Thought | Image


@dataclasses.dataclass(frozen=True)
class ToolCall:
  """A call that the model makes.

  Attributes:
    name: The name of the tool.
    arguments: Its arguments.
    id: Id for the answer, if the dataset has one.
    is_json: Whether the arguments were JSON in a text, where no reader fills in
      nulls.
  """

  name: str
  arguments: dict[str, Any]
  id: str | None = None
  is_json: bool = False


@dataclasses.dataclass(frozen=True)
class ToolResponse:
  """The answer of a tool.

  Attributes:
    name: The name of the tool; `''` until answers are matched with calls.
    response: A dict, or another JSON value.
    num_images: How many images it shows.
    call_id: Which call it answers, if the dataset says so.
    given_name: The name that the answer itself has in the dataset.
    field: Its field, for Google's template, which treats some fields
      differently: `'content'` of a message of its own, as OpenAI's, or
      `'tool_responses'` of the model's; `''` of others.
  """

  name: str
  response: Any
  num_images: int = 0
  call_id: str | None = None
  given_name: str | None = None
  field: str = ''


@dataclasses.dataclass(frozen=True, kw_only=True)
class Message:
  """A message of one side.

  Attributes:
    role: One of `ROLES`. A tool's answers belong to the model's message that
      called it.
    parts: Text, thoughts and images, in order.
    calls: Calls of tools.
    responses: Results of the calls.
    weight: Weight of the message in the loss.
    is_developer: Whether a system message is the developer's, in the dataset.
    is_list: Whether the content was a list, whose texts Hugging Face's template
      strips one by one.
    field: Its place in the row, for errors.
  """

  role: str
  parts: tuple[Part, ...] = ()
  calls: tuple[ToolCall, ...] = ()
  responses: tuple[ToolResponse, ...] = ()
  weight: float = 1.0
  is_developer: bool = False
  is_list: bool = False
  field: str = dataclasses.field(default='', compare=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversation:
  """What is said, and to whom.

  Attributes:
    messages: The messages.
    tools: The tools that are declared to the model.
    template_kwargs: What the row says of its template, beside the task's.
  """

  messages: tuple[Message, ...]
  tools: tuple[dict[str, Any], ...] = ()
  template_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def num_images(self) -> int:
    """Number of places of images."""
    said = sum(
        isinstance(part, Image) for m in self.messages for part in m.parts
    )
    return said + sum(
        answer.num_images for m in self.messages for answer in m.responses
    )


def parse_text(
    text: str, *, role: str, field: str, item: int = 0
) -> list[Part]:
  """Returns the parts of a text, split at its tags.

  Args:
    text: The dataset's text.
    role: Who says it: only the model has thoughts.
    field: The field that holds the text, for messages.
    item: The text's entry of the content, if that is a list.

  Raises:
    ValueError: A tag is not allowed, or a thought has only one of its tags.
  """
  _control_tags.check(
      text, field=field, allowed=_READ_OF_MODEL if role == MODEL else _READ
  )
  if role != MODEL or _CHANNEL_CLOSE not in text and _CHANNEL_OPEN not in text:
    return _split_images(text, item)
  parts: list[Part] = []
  begin = 0
  while True:
    open_ = text.find(_THOUGHT_OPEN, begin)
    before = text[begin:] if open_ < 0 else text[begin:open_]
    for tag in (_CHANNEL_OPEN, _CHANNEL_CLOSE):
      if tag in before:
        raise _half_a_thought(tag, text, field)
    parts.extend(_split_images(before, item))
    if open_ < 0:
      return parts
    begin = open_ + len(_THOUGHT_OPEN)
    close = text.find(_CHANNEL_CLOSE, begin)
    if close < 0:
      raise _half_a_thought(_CHANNEL_OPEN, text, field)
    parts.append(Thought(text[begin:close], is_inline=True))
    begin = close + len(_CHANNEL_CLOSE)


def _half_a_thought(tag: str, text: str, field: str) -> ValueError:
  return ValueError(
      f'Field {field!r} has the tag {tag!r} without its other half. A thought is'
      f' {_THOUGHT_OPEN!r}, text, {_CHANNEL_CLOSE!r}. Got: {text[:200]!r}'
  )


def said(text: str) -> str:
  """Returns the model's answer in a sampled text or in its turn.

  Args:
    text: Text with tags. Everything up to the end of the turn counts, except
      thoughts, even those that do not end.
  """
  for tag in _control_tags.TURN_TAGS:
    text = text.split(tag, 1)[0]
  return _THOUGHT.sub('', text).split(_CHANNEL_OPEN, 1)[0].strip()


def _split_images(text: str, item: int) -> list[Part]:
  if IMAGE_TAG not in text:
    return [Text(text, item)] if text else []
  parts: list[Part] = []
  for i, between in enumerate(text.split(IMAGE_TAG)):
    if i:
      parts.append(Image(item))
    if between:
      parts.append(Text(between, item))
  return parts
