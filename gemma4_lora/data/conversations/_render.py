"""Renders a conversation in Gemma 4's turns."""

from gemma4_lora.data.conversations import _conversation
from gemma4_lora.data.conversations import _message_text
from gemma4_lora.data.conversations import _spans
from gemma4_lora.data.conversations import _style
from gemma4_lora.data.conversations import _tools

Conversation = _conversation.Conversation
Message = _conversation.Message
Rendered = _spans.Rendered
Style = _style.Style

_EMPTY_THOUGHT = '<|channel>thought\n<channel|>'


def render(conversation: Conversation, style: Style) -> Rendered:
  """Returns the conversation in turns."""
  return _Renderer(conversation, style).render()


class _Renderer:
  """Collects the spans of one conversation."""

  def __init__(self, conversation: Conversation, style: Style):
    self._style = style
    self._tools = conversation.tools
    self._messages = _with_system(conversation, style)
    users = [i for i, m in enumerate(self._messages) if m.role != 'model']
    models = [i for i, m in enumerate(self._messages) if m.role == 'model']
    # The last turn of the model: its messages after the last of another.
    last_model = models[-1] if models else -1
    self._last_turn = max((i for i in users if i < last_model), default=-1)
    self._spans: list[_spans.Span] = []
    self._response = 0  # Where the last one begins.

  def render(self) -> Rendered:
    messages = self._messages
    for i, message in enumerate(messages):
      previous = messages[i - 1] if i else None
      following = messages[i + 1] if i + 1 < len(messages) else None
      said = _message_text.said(
          message,
          self._style,
          weight=self._weight(i),
          is_last_turn=i > self._last_turn,
      )
      if not self._continues(previous, message):
        self._open(i)
      self._say(i, said)
      self._close(i, said, following)
    response = self._response or len(self._spans)
    return _spans.rendered(self._spans, num_prompt=response)

  def _continues(self, previous: Message | None, message: Message) -> bool:
    """Whether two messages share a turn."""
    if previous is None or previous.role != message.role:
      return False
    return self._style.like_dialog or message.role == 'model'

  def _open(self, i: int) -> None:
    role = self._messages[i].role
    if self._spans and self._style.like_dialog:
      self._add('\n')
    self._add(f'<|turn>{role}\n')
    if role != 'model':
      return
    if self._style.thinking == 'empty' and self._is_trained(i):
      self._add(_EMPTY_THOUGHT)
    self._response = len(self._spans)

  def _say(self, i: int, said: _message_text.Said) -> None:
    """Adds what a message says, in its template's order."""
    message = self._messages[i]
    is_first_system = i == 0 and message.role == 'system'
    if is_first_system and self._style.enable_thinking:
      self._add('<|think|>' if self._style.like_dialog else '<|think|>\n')
    for span in said.before:
      self._add(span.text, span.weight)
    self._call(message, self._weight(i))
    for span in said.after:
      self._add(span.text, span.weight)
    if is_first_system:
      for tool in self._tools:
        self._add(_tools.declaration(tool, like_dialog=self._style.like_dialog))

  def _call(self, message: Message, weight: float) -> None:
    """Adds the calls of tools, and what the tools answered."""
    for call in message.calls:
      text = _tools.call(call, like_dialog=self._style.like_dialog)
      self._add(text, weight)
    for j, response in enumerate(message.responses):
      # At this tag samplers stop, and tools run: the model writes it.
      self._add(_tools.RESPONSE_OPEN, 0.0 if j else weight)
      text = _tools.response(response, like_dialog=self._style.like_dialog)
      self._add(text)

  def _close(
      self, i: int, said: _message_text.Said, following: Message | None
  ) -> None:
    message = self._messages[i]
    weight = self._weight(i)
    if self._style.like_dialog:
      if following is None or following.role != message.role:
        self._add('<turn|>', weight)
      return
    if message.calls and not message.responses:
      self._add(_tools.RESPONSE_OPEN, weight)
    elif not message.responses or any(span.text for span in said.after):
      self._add('<turn|>', weight)
      if following is not None:
        self._add('\n')

  def _is_trained(self, i: int) -> bool:
    if self._messages[i].role != 'model':
      return False
    return self._style.loss_on == 'all' or i > self._last_turn

  def _weight(self, i: int) -> float:
    return self._messages[i].weight if self._is_trained(i) else 0.0

  def _add(self, text: str, weight: float = 0.0) -> None:
    if text:
      self._spans.append(_spans.Span(text, weight))


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
