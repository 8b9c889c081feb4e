"""Applies all rules to a conversation, by the policies of a task."""

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import itertools

from gemma4_lora.data.conversations import _choices
from gemma4_lora.data.conversations import _control_tags
from gemma4_lora.data.conversations import _conversation
from gemma4_lora.data.rules import _empty_answers
from gemma4_lora.data.rules import _inline_markup
from gemma4_lora.data.rules import _json_values
from gemma4_lora.data.rules import _matched_answers
from gemma4_lora.data.rules import _null_arguments

Conversation = _conversation.Conversation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
  """The rules for conversations; see `ChatTask` for the policies.

  Attributes:
    empty_answers: Whether the model may say nothing.
    inline_markup: How thoughts and calls in texts are treated.
    null_arguments: How nulls in tool arguments are treated.
    allowed_tags: Names of control tokens that texts may have.
  """

  empty_answers: str = 'refuse'
  inline_markup: str = 'refuse'
  null_arguments: str = 'schema'
  allowed_tags: tuple[str, ...] = ()

  def __post_init__(self):
    for name, choices in (
        ('empty_answers', _empty_answers.CHOICES),
        ('inline_markup', _inline_markup.CHOICES),
        ('null_arguments', _null_arguments.CHOICES),
    ):
      _choices.check_choice(name, getattr(self, name), choices)
    _control_tags.check_allowed(self.allowed_tags)

  def applied(
      self, conversation: Conversation, *, thinking: str
  ) -> Conversation:
    """Returns the conversation to render.

    Args:
      conversation: The output of a layout.
      thinking: How thoughts are treated, see `ChatTask`.

    Raises:
      ValueError: It breaks a rule.
    """
    conversation = _inline_markup.read(conversation, policy=self.inline_markup)
    conversation = _matched_answers.matched(conversation)
    conversation = _null_arguments.dropped(
        conversation, policy=self.null_arguments
    )
    _json_values.check(conversation)
    self._check_texts(conversation)
    if self.empty_answers == 'refuse':
      _empty_answers.check(conversation, thinking=thinking)
    return conversation

  def _check_texts(self, conversation: Conversation) -> None:
    """Raises a ValueError for a control tag in any text."""
    allowed = self.allowed_tags
    for i, tool in enumerate(conversation.tools):
      _control_tags.check_all(tool, field=f'tools[{i}]', allowed=allowed)
    for field, text in _joined_texts(conversation.messages):
      _control_tags.check(text, field=field, allowed=allowed)
    for message in conversation.messages:
      field = message.field or message.role
      for part in message.parts:
        if not isinstance(part, _conversation.Image):
          _control_tags.check(part.text, field=field, allowed=allowed)
      for call in message.calls:
        where = f'{field}, arguments of {call.name}'
        _control_tags.check(call.name, field=field, allowed=allowed)
        _control_tags.check_all(call.arguments, field=where, allowed=allowed)
      for answer in message.responses:
        where = f'{field}, answer of {answer.name}'
        _control_tags.check(answer.name, field=field, allowed=allowed)
        _control_tags.check_all(answer.response, field=where, allowed=allowed)


def _joined_texts(
    messages: Sequence[_conversation.Message],
) -> Iterator[tuple[str, str]]:
  """Yields texts that a template may put side by side, with their field.

  A tag could be cut over two of them. These are the texts of a message, and of
  messages of one side in a row; a thought between them may be left out. Some
  templates strip each.
  """
  for role, group in itertools.groupby(messages, key=lambda m: m.role):
    texts, field = [], role
    for message in group:
      field = message.field or role
      for part in message.parts:
        if isinstance(part, _conversation.Text):
          texts.append(part.text)
        elif isinstance(part, _conversation.Image):
          texts.append('\n')  # Its own tokens stand there.
    if len(texts) > 1:
      yield field, ''.join(texts)
      yield field, ''.join(x.strip() or x for x in texts)
