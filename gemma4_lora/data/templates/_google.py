"""Renders as Google's chat template does, which servers read from the model.

Its revisions are in `_templates`. This is our own code, tested against texts
that the real file rendered: see `tests/lib/template_reference.py`.
"""

from collections.abc import Sequence

from gemma4_lora.data.conversations import _conversation
from gemma4_lora.data.conversations import _spans
from gemma4_lora.data.templates import _google_tools
from gemma4_lora.data.templates import _style
from gemma4_lora.data.templates import _templates
from gemma4_lora.data.templates import _thoughts
from gemma4_lora.data.templates import _trimmed
from gemma4_lora.data.templates import _turns

MODEL = _conversation.MODEL
Part = _conversation.Part
Span = _spans.Span


class Google:
  """Renders one conversation: texts are trimmed, keys sorted."""

  def __init__(
      self,
      conversation: _conversation.Conversation,
      style: _style.Style,
      revision: _templates.Revision,
  ):
    self._style = style
    self._revision = revision
    self._tools = conversation.tools
    self._messages = messages = conversation.messages
    users = [i for i, m in enumerate(messages) if m.role == 'user']
    self._last_user = users[-1] if users else -1
    self._turns = _turns.Turns(messages, style)
    self._ends_with_answer = False  # For a tool: the text so far.

  def render(self) -> _spans.Rendered:
    """Returns the conversation in turns.

    Raises:
      ValueError: The template has no place for something that it says.
    """
    messages = self._messages
    begin = int(bool(messages) and messages[0].role == 'system')
    if begin or self._tools or self._style.enable_thinking:
      self._system(messages[0] if begin else None)
    for i in range(begin, len(messages)):
      self._message(i, messages[i - 1] if i > begin else None)
    return self._turns.rendered()

  def _system(self, message: _conversation.Message | None) -> None:
    """Adds the first turn: the thinking switch, the system text, and tools."""
    turns = self._turns
    turns.add('<|turn>system\n')
    if self._style.enable_thinking:
      turns.add('<|think|>\n')
    if message is not None:
      turns.add(_trimmed.system(message))
    for tool in self._tools:
      turns.add(_google_tools.declaration(tool, self._revision))
    self._end()

  def _message(self, i: int, previous: _conversation.Message | None) -> None:
    message, turns = self._messages[i], self._turns
    continues = previous is not None and previous.role == message.role == MODEL
    if not continues:
      turns.open(i, 'developer' if message.is_developer else None)
    parts = _thoughts.kept(message, self._style, is_last=i > self._last_user)
    number = _thoughts.num_leading(parts)
    thoughts = [self._thought(p, turns.weight(i)) for p in parts[:number]]
    if continues and self._begins_thought():
      if thoughts:
        thoughts[:1] = self._begun(thoughts[0])
      elif turns.weight(i):
        _thoughts.warn_of_none(message.field)
    turns.add_spans(thoughts)
    self._call(i)
    content = self._content(parts[number:], i)
    turns.add_spans(content)
    has_content = any(x.text.strip() for x in content)
    self._ends_with_answer = bool(message.responses) and not has_content
    self._close(i)

  def _begins_thought(self) -> bool:
    """Whether servers begin the next thought, after a tool's answer."""
    return (
        self._revision.continues_with_thought
        and self._style.enable_thinking
        and self._ends_with_answer
    )

  def _begun(self, thought: Span) -> list[Span]:
    """Returns a thought whose opening tag is in the prompt."""
    rest = thought.text.removeprefix(_thoughts.OPEN)
    return [Span(_thoughts.OPEN), Span(rest, thought.weight)]

  def _thought(self, part: Part, weight: float) -> Span:
    assert isinstance(part, _conversation.Thought)  # See its caller.
    return _thoughts.span(part, self._style, weight, end='\n')

  def _content(self, parts: Sequence[Part], i: int) -> list[Span]:
    """Returns the texts, images and thoughts among them of a message."""
    weight = self._turns.weight(i)
    spans = []
    for part, text in zip(parts, _trimmed.texts(parts), strict=True):
      if isinstance(part, _conversation.Thought):
        spans.append(_thoughts.span(part, self._style, weight))
      elif isinstance(part, _conversation.Image):
        spans.append(Span(text))
      else:
        spans.append(Span(text, weight))
    return spans

  def _call(self, i: int) -> None:
    """Adds tool calls and the answers of the tools."""
    message, turns = self._messages[i], self._turns
    for call in message.calls:
      turns.add(_google_tools.call(call, self._revision), turns.weight(i))
    for j, answer in enumerate(message.responses):
      # At this tag samplers stop, and tools run: the model writes it.
      weight = 0.0 if j else turns.weight(i)
      turns.add(_google_tools.RESPONSE_OPEN, weight)
      turns.add(_google_tools.response(answer, message.calls, self._revision))

  def _close(self, i: int) -> None:
    message, turns = self._messages[i], self._turns
    is_last = i + 1 == len(self._messages)
    following = None if is_last else self._messages[i + 1]
    weight = turns.weight(i)
    if message.calls and not message.responses:
      turns.add(_google_tools.RESPONSE_OPEN, weight)
      return
    silent = self._ends_with_answer
    if not self._revision.joins_messages:
      if not silent:
        self._end(weight)
      return
    if message.role == MODEL and following and following.role == MODEL:
      return
    if not silent:
      self._end(weight)
    elif not is_last:
      self._end()  # The model said nothing after the tool's answer.

  def _end(self, weight: float = 0.0) -> None:
    self._turns.add('<turn|>', weight)
    self._turns.add('\n')
