"""Renders a conversation in Gemma 4's turns, in pieces with and without loss."""

import dataclasses
from typing import Any

from gemma4_lora.data.conversations import _conversation
from gemma4_lora.data.conversations import _fields
from gemma4_lora.data.conversations import _layouts
from gemma4_lora.data.conversations import _tools

Conversation = _conversation.Conversation
Message = _conversation.Message

_EMPTY_THOUGHT = '<|channel>thought\n<channel|>'

_CHOICES = {
    'thinking': ('keep', 'mask', 'strip', 'strip_all', 'empty'),
    'loss_on': ('all', 'last'),
    'template': ('dialog', 'transformers'),
    'layout': _layouts.LAYOUTS,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Style:
  """How conversations are rendered, the same in all tasks.

  Attributes:
    thinking: What becomes of thoughts.
    loss_on: Which of the model's turns are trained.
    template: Whose rendering.
    enable_thinking: Whether the system turn has `<|think|>`.
  """

  thinking: str = 'keep'
  loss_on: str = 'all'
  template: str = 'dialog'
  enable_thinking: bool = False

  def __post_init__(self):
    for name in ('thinking', 'loss_on', 'template'):
      check_choice(name, getattr(self, name))
    if self.enable_thinking and self.thinking == 'empty':
      raise ValueError(
          "thinking='empty' is the block of a model that shall not think:"
          ' enable_thinking=True contradicts it. Drop one of the two.'
      )

  @property
  def like_dialog(self) -> bool:
    """Whether it is `dialog`'s rendering, not Hugging Face's."""
    return self.template == 'dialog'


def check_choice(name: str, value: Any) -> None:
  """Raises a ValueError for a value that an argument does not have."""
  if value not in _CHOICES[name]:
    raise ValueError(
        f'{name}={value!r} is none of {list(_CHOICES[name])}.'
        f'{_fields.close_match(value, _CHOICES[name])}'
    )


@dataclasses.dataclass(frozen=True)
class Segment:
  """A piece of text, and the weight of its tokens in the loss."""

  text: str
  weight: float = 0.0


@dataclasses.dataclass(frozen=True)
class Rendered:
  """A conversation as the model sees it, without `<bos>`.

  Attributes:
    segments: In order; neighbours differ in weight.
    num_prompt: How many of the characters a sampler is given for the model's
      last turn: all up to where the model begins.
  """

  segments: tuple[Segment, ...]
  num_prompt: int

  @property
  def text(self) -> str:
    """All of it."""
    return ''.join(s.text for s in self.segments)

  @property
  def prompt(self) -> str:
    """What a sampler is given for the model's last turn."""
    return self.text[: self.num_prompt]

  @property
  def response(self) -> str:
    """What the model shall say to the prompt."""
    return self.text[self.num_prompt :]

  @property
  def trained(self) -> str:
    """What has a loss."""
    return ''.join(s.text for s in self.segments if s.weight)


def render(conversation: Conversation, style: Style) -> Rendered:
  """Returns the conversation in turns."""
  return _Renderer(conversation, style).render()


class _Renderer:
  """Collects the pieces of one conversation."""

  def __init__(self, conversation: Conversation, style: Style):
    self._style = style
    self._tools = conversation.tools
    self._messages = _with_system(conversation, style)
    users = [i for i, m in enumerate(self._messages) if m.role != 'model']
    models = [i for i, m in enumerate(self._messages) if m.role == 'model']
    # The last turn of the model: its messages after the last of another.
    self._last_model = models[-1] if models else -1
    self._last_turn = max(
        (i for i in users if i < self._last_model), default=-1
    )
    self._pieces: list[Segment] = []
    self._response = 0  # Where the last one begins.

  def render(self) -> Rendered:
    messages = self._messages
    for i, message in enumerate(messages):
      previous = messages[i - 1] if i else None
      following = messages[i + 1] if i + 1 < len(messages) else None
      if not self._continues(previous, message):
        self._open(i)
      self._say(i)
      self._close(i, following)
    response = self._response or len(self._pieces)
    return Rendered(
        _merged(self._pieces, barrier=response),
        num_prompt=sum(len(piece.text) for piece in self._pieces[:response]),
    )

  def _continues(self, previous: Message | None, message: Message) -> bool:
    """Whether two messages share a turn."""
    if previous is None or previous.role != message.role:
      return False
    return self._style.like_dialog or message.role == 'model'

  def _open(self, i: int) -> None:
    role = self._messages[i].role
    if self._pieces and self._style.like_dialog:
      self._add('\n')
    self._add(f'<|turn>{role}\n')
    if role != 'model':
      return
    if self._style.thinking == 'empty' and self._is_trained(i):
      self._add(_EMPTY_THOUGHT)
    self._response = len(self._pieces)

  def _close(self, i: int, following: Message | None) -> None:
    message = self._messages[i]
    weight = self._weight(i)
    if self._style.like_dialog:
      if following is None or following.role != message.role:
        self._add('<turn|>', weight)
      return
    said = self._parts(i)[_num_leading_thoughts(self._kept_parts(i)) :]
    has_text = any(text for text, _ in said)
    if message.calls and not message.responses:
      self._add(_tools.RESPONSE_OPEN, weight)
    elif has_text or not message.responses:
      self._add('<turn|>', weight)
      if following is not None:
        self._add('\n')

  def _say(self, i: int) -> None:
    """Adds what a message says, in its template's order."""
    message = self._messages[i]
    weight = self._weight(i)
    if i == 0 and message.role == 'system' and self._style.enable_thinking:
      self._add('<|think|>' if self._style.like_dialog else '<|think|>\n')
    parts = self._parts(i)
    if self._style.like_dialog:
      thoughts, rest = [], parts
    else:
      # What is thought comes before the calls, what is said after them.
      number = _num_leading_thoughts(self._kept_parts(i))
      thoughts, rest = parts[:number], parts[number:]
    for text, part_weight in thoughts:
      self._add(text, part_weight)
    if self._style.like_dialog:
      for text, part_weight in rest:
        self._add(text, part_weight)
    for call in message.calls:
      text = _tools.call(call, like_dialog=self._style.like_dialog)
      self._add(text, weight)
    for j, response in enumerate(message.responses):
      # At this tag samplers stop, and tools run: the model writes it.
      self._add(_tools.RESPONSE_OPEN, 0.0 if j else weight)
      text = _tools.response(response, like_dialog=self._style.like_dialog)
      self._add(text)
    if not self._style.like_dialog:
      for text, part_weight in rest:
        self._add(text, part_weight)
    if i == 0 and message.role == 'system':
      for tool in self._tools:
        self._add(_tools.declaration(tool, like_dialog=self._style.like_dialog))

  def _parts(self, i: int) -> list[tuple[str, float]]:
    """Returns text and weight of what a message says."""
    message = self._messages[i]
    weight = self._weight(i)
    parts = self._kept_parts(i)
    texts = []
    for part in parts:
      if isinstance(part, _conversation.Thought):
        thought_weight = 0.0 if self._style.thinking == 'mask' else weight
        texts.append((self._thought(part), thought_weight))
      elif isinstance(part, _conversation.Image):
        texts.append((_conversation.IMAGE_TAG, 0.0))
      else:
        texts.append((part.text, weight))
    if self._style.like_dialog:
      return texts
    return _stripped(texts, parts, message)

  def _thought(self, thought: _conversation.Thought) -> str:
    end = '' if self._style.like_dialog or thought.is_inline else '\n'
    return f'<|channel>thought\n{thought.text}{end}<channel|>'

  def _kept_parts(self, i: int) -> list[Any]:
    """Returns the parts of a message that the policy leaves."""
    policy = self._style.thinking
    keeps = policy in ('keep', 'mask')
    if policy == 'strip':
      keeps = i > self._last_turn
    parts = self._messages[i].parts
    if keeps:
      return list(parts)
    kept = [p for p in parts if not isinstance(p, _conversation.Thought)]
    return _joined(kept)

  def _is_trained(self, i: int) -> bool:
    if self._messages[i].role != 'model':
      return False
    return self._style.loss_on == 'all' or i > self._last_turn

  def _weight(self, i: int) -> float:
    return self._messages[i].weight if self._is_trained(i) else 0.0

  def _add(self, text: str, weight: float = 0.0) -> None:
    if text:
      self._pieces.append(Segment(text, weight))


def _with_system(
    conversation: Conversation, style: Style
) -> tuple[Message, ...]:
  """Returns the messages, with a system one where something must go there."""
  messages = conversation.messages
  if not conversation.tools and not style.enable_thinking:
    return messages
  if messages and messages[0].role == 'system':
    return messages
  return (Message(role='system'), *messages)


def _num_leading_thoughts(parts: list[Any]) -> int:
  for i, part in enumerate(parts):
    if not isinstance(part, _conversation.Thought) or part.is_inline:
      return i
  return len(parts)


def _stripped(
    texts: list[tuple[str, float]], parts: list[Any], message: Message
) -> list[tuple[str, float]]:
  """Returns the texts without the space around them, as the template has them.

  A list of texts is stripped one by one; so is each side of a thought.
  """
  stripped = []
  for i, ((text, weight), part) in enumerate(zip(texts, parts, strict=True)):
    if isinstance(part, _conversation.Text):
      before = parts[i - 1] if i else None
      after = parts[i + 1] if i + 1 < len(parts) else None
      text = text.lstrip() if _is_edge(part, before) else text
      text = text.rstrip() if _is_edge(part, after) else text
      if message.role == 'system' and message.is_list:
        text += ' '
    stripped.append((text, weight))
  return stripped


def _is_edge(text: _conversation.Text, neighbour: Any) -> bool:
  """Whether a text ends where its neighbour begins."""
  if neighbour is None or isinstance(neighbour, _conversation.Thought):
    return True
  return neighbour.item != text.item


def _joined(parts: list[Any]) -> list[Any]:
  """Joins texts between which a thought was."""
  joined: list[Any] = []
  for part in parts:
    last = joined[-1] if joined else None
    if (
        isinstance(part, _conversation.Text)
        and isinstance(last, _conversation.Text)
        and part.item == last.item
    ):
      part = dataclasses.replace(last, text=last.text + part.text)
      joined.pop()
    joined.append(part)
  return joined


def _merged(pieces: list[Segment], *, barrier: int) -> tuple[Segment, ...]:
  """Joins neighbours of one weight: they are tokenized as one text.

  Args:
    pieces: Of the conversation.
    barrier: Number of the first piece of the last response: the prompt of a
      sampler ends there, and tokens must not span it.
  """
  merged: list[Segment] = []
  for i, piece in enumerate(pieces):
    if merged and merged[-1].weight == piece.weight and i != barrier:
      piece = Segment(merged.pop().text + piece.text, piece.weight)
    merged.append(piece)
  return tuple(merged)
