"""Renders as the `dialog` package does, and with it gemma's samplers."""

from gemma4_lora.data.conversations import _conversation
from gemma4_lora.data.conversations import _spans
from gemma4_lora.data.templates import _dialog_tools
from gemma4_lora.data.templates import _style
from gemma4_lora.data.templates import _thoughts
from gemma4_lora.data.templates import _turns

Message = _conversation.Message


class Dialog:
  """Renders one conversation. Texts are not changed."""

  def __init__(
      self, conversation: _conversation.Conversation, style: _style.Style
  ):
    self._style = style
    self._tools = conversation.tools
    self._messages = _with_system(conversation, style)
    self._turns = _turns.Turns(self._messages, style)

  def render(self) -> _spans.Rendered:
    """Returns the conversation in turns."""
    messages = self._messages
    for i, message in enumerate(messages):
      following = messages[i + 1] if i + 1 < len(messages) else None
      if not i or messages[i - 1].role != message.role:
        if i:
          self._turns.add('\n')
        self._turns.open(i)
      self._say(i)
      if following is None and message.calls and not message.responses:
        # As `as_text()` renders prompts: samplers stop there.
        self._turns.add(_dialog_tools.RESPONSE_OPEN, self._turns.weight(i))
      elif following is None or following.role != message.role:
        # Behind a tool's answer the model says nothing: an empty answer.
        is_silent = message.responses and not self._style.trains_silence
        weight = 0.0 if is_silent else self._turns.weight(i)
        self._turns.add('<turn|>', weight)
    return self._turns.rendered()

  def _say(self, i: int) -> None:
    """Adds the content of a message."""
    message, turns = self._messages[i], self._turns
    weight = turns.weight(i)
    is_first_system = i == 0 and message.role == 'system'
    if is_first_system and self._style.enable_thinking:
      turns.add('<|think|>')
    is_last = i > turns.last_turn
    for part in _thoughts.kept(message, self._style, is_last=is_last):
      turns.add_spans([self._span(part, weight)])
    for call in message.calls:
      turns.add(_dialog_tools.call(call), weight)
    for j, answer in enumerate(message.responses):
      # At this tag samplers stop, and tools run: the model writes it.
      turns.add(_dialog_tools.RESPONSE_OPEN, 0.0 if j else weight)
      turns.add(_dialog_tools.response(answer))
    if is_first_system:
      for tool in self._tools:
        turns.add(_dialog_tools.declaration(tool))

  def _span(self, part: _conversation.Part, weight: float) -> _spans.Span:
    if isinstance(part, _conversation.Thought):
      return _thoughts.span(part, self._style, weight)
    if isinstance(part, _conversation.Image):
      return _spans.Span(_conversation.IMAGE_TAG)
    return _spans.Span(part.text, weight)


def _with_system(
    conversation: _conversation.Conversation, style: _style.Style
) -> tuple[Message, ...]:
  """Returns the messages, with a system message if one is needed."""
  messages = conversation.messages
  if not conversation.tools and not style.enable_thinking:
    return messages
  if messages and messages[0].role == 'system':
    return messages
  return (Message(role='system'), *messages)
