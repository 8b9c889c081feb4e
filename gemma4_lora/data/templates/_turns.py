"""The turns of a conversation that are trained, and their spans."""

from collections.abc import Sequence

from gemma4_lora.data.conversations import _conversation
from gemma4_lora.data.conversations import _spans
from gemma4_lora.data.templates import _style
from gemma4_lora.data.templates import _thoughts

MODEL = _conversation.MODEL


class Turns:
  """Collects the spans of all messages, and decides which are trained.

  Attributes:
    messages: The messages.
    style: How they are rendered.
    last_turn: The index before the model's last turn.
  """

  def __init__(
      self,
      messages: Sequence[_conversation.Message],
      style: _style.Style,
  ):
    self.messages = messages
    self.style = style
    others = [i for i, m in enumerate(messages) if m.role != MODEL]
    models = [i for i, m in enumerate(messages) if m.role == MODEL]
    last_model = models[-1] if models else -1
    self.last_turn = max((i for i in others if i < last_model), default=-1)
    self._spans: list[_spans.Span] = []
    self._answer = 0  # The span with which the model's last turn begins.

  def is_trained(self, i: int) -> bool:
    """Whether a message belongs to a trained turn of the model."""
    if self.messages[i].role != MODEL:
      return False
    return self.style.loss_on == 'all' or i > self.last_turn

  def weight(self, i: int) -> float:
    """Returns the loss weight of a message."""
    return self.messages[i].weight if self.is_trained(i) else 0.0

  def add(self, text: str, weight: float = 0.0) -> None:
    """Adds a text."""
    if text:
      self._spans.append(_spans.Span(text, weight))

  def add_spans(self, spans: Sequence[_spans.Span]) -> None:
    """Adds texts with weights."""
    for span in spans:
      self.add(span.text, span.weight)

  def open(self, i: int, role: str | None = None) -> None:
    """Begins the turn of a message."""
    message = self.messages[i]
    self.add(f'<|turn>{role or message.role}\n')
    if message.role != MODEL:
      return
    if self.style.thinking == 'empty' and self.is_trained(i):
      self.add(_thoughts.EMPTY)
    self._answer = len(self._spans)

  @property
  def is_empty(self) -> bool:
    """Whether nothing was added."""
    return not self._spans

  def rendered(self) -> _spans.Rendered:
    """Returns all spans, without the newline after the last turn.

    Samplers stop at the end of the turn: the newline is not sampled.
    """
    spans = self._spans
    if spans and spans[-1].text == '\n':
      spans = spans[:-1]
    return _spans.rendered(spans, num_prompt=self._answer or len(spans))
