"""Renders a conversation in Gemma 4's turns, as one of the templates does."""

from gemma4_lora.data.conversations import _conversation
from gemma4_lora.data.conversations import _spans
from gemma4_lora.data.templates import _dialog
from gemma4_lora.data.templates import _google
from gemma4_lora.data.templates import _style
from gemma4_lora.data.templates import _templates

Conversation = _conversation.Conversation
Rendered = _spans.Rendered
Style = _style.Style


def render(conversation: Conversation, style: Style) -> Rendered:
  """Returns the conversation in turns.

  Raises:
    ValueError: The template has no place for something that it says.
  """
  revision = _templates.REVISIONS.get(style.template)
  if revision is None:
    return _dialog.Dialog(conversation, style).render()
  return _google.Google(conversation, style, revision).render()
