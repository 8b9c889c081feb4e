"""The table of templates: to add a revision of Google's, add its line here."""

from collections.abc import Collection
import dataclasses
import re

from gemma4_lora.data.conversations import _choices


@dataclasses.dataclass(frozen=True, kw_only=True)
class Revision:
  """Differences of one revision of Google's chat template from others.

  Attributes:
    null: How a null is spelled in arguments and in answers of tools.
    joins_messages: Whether messages of the model in a row are one turn with one
      end, and a user who follows a tool's answer ends the turn.
    continues_with_thought: Whether the prompt behind a tool's answer begins a
      thought, if thinking is enabled.
    images_of_tools: Whether a tool's answer may show images.
    kwargs: Arguments of the template, beside `enable_thinking`.
  """

  null: str = 'null'
  joins_messages: bool = True
  continues_with_thought: bool = True
  images_of_tools: bool = True
  kwargs: tuple[str, ...] = ('preserve_thinking',)


_JULY = Revision()
_MAY = Revision(
    null='None', joins_messages=False, continues_with_thought=False, kwargs=()
)

# By the day of the file in the model's repository. SHA-256 of the file of the E
# models, and of that of the larger ones, which differ in the prompt alone:
# 2026-07-09  0a2c8073…  ae53464b…
# 2026-05-28  2f1b4d75…  36e3a42e…
# 2026-04-28  33204f1a…  94899c0f…
REVISIONS = {
    'transformers': _JULY,
    'transformers-2026-07': _JULY,
    'transformers-2026-05': _MAY,
    'transformers-2026-04': dataclasses.replace(_MAY, images_of_tools=False),
}
DIALOG = 'dialog'


# What a server gives to each template by itself, or asks of its client.
_RESERVED = frozenset(
    {
        'add_generation_prompt',
        'bos_token',
        'chat_template',
        'continue_final_message',
        'documents',
        'eos_token',
        'messages',
        'pad_token',
        'return_dict',
        'tokenize',
        'tools',
        'unk_token',
    }
)

# What is no name is a path: it has a slash, or the ending of a file.
_PATH = re.compile(r'[/\\]|\.(jinja2?|json)$|^[.~]')


def is_path(template: str) -> bool:
  """Whether a template is one of a file."""
  return template not in (DIALOG, *REVISIONS) and bool(_PATH.search(template))


def check(template: str, kwargs: Collection[str] = ()) -> None:
  """Raises ValueError for an unknown template, or arguments it cannot have."""
  if reserved := sorted(_RESERVED.intersection(kwargs)):
    raise ValueError(
        f'template_kwargs=, or chat_template_kwargs of the row, has {reserved}:'
        ' the server gives these to its template itself. Remove them.'
    )
  if isinstance(template, str) and is_path(template):
    return
  try:
    _choices.check_choice('template', template, (DIALOG, *REVISIONS))
  except ValueError as e:
    raise ValueError(
        f"{e} Or give the path of a chat_template.jinja, as './folder/'."
    ) from None
  revision = REVISIONS.get(template)
  known = revision.kwargs if revision else ()
  for name in kwargs:
    if name not in known:
      raise ValueError(
          f'template={template!r} has no argument {name!r} for template_kwargs= or'
          f" a row's chat_template_kwargs. It has: {['enable_thinking', *known]}."
      )
