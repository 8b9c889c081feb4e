"""Renders a conversation in Gemma 4's turns, as one of the templates does."""

from gemma4_lora.data.conversations import _conversation
from gemma4_lora.data.conversations import _spans
from gemma4_lora.data.templates import _dialog
from gemma4_lora.data.templates import _google
from gemma4_lora.data.templates import _jinja
from gemma4_lora.data.templates import _prefixes
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
  style = style.of_row(conversation.template_kwargs)
  if style.has_file:
    return _from_file(conversation, style).render()
  revision = _templates.REVISIONS.get(style.template)
  if revision is None:
    return _dialog.Dialog(conversation, style).render()
  return _google.Google(conversation, style, revision).render()


def prompt(conversation: Conversation, style: Style) -> str:
  """Returns all up to where the model's last turn begins.

  Raises:
    ValueError: The template has no place for something that is said.
  """
  style = style.of_row(conversation.template_kwargs)
  if style.has_file:
    return _from_file(conversation, style).prompt()
  return render(conversation, style).prompt


def check(style: Style) -> None:
  """Reads the template of a file.

  Raises:
    FileNotFoundError: There is none.
    ValueError: It is no template.
  """
  if style.has_file:
    _ = _jinja.template(style.template)


def _from_file(conversation: Conversation, style: Style) -> _prefixes.Prefixes:
  template = _jinja.template(style.template)
  return _prefixes.Prefixes(conversation, style, template)
