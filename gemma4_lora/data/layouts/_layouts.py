"""The table of layouts: to add one, write its module and its line here."""

import re
import textwrap

from gemma4_lora.data.conversations import _choices
from gemma4_lora.data.layouts import _alpaca
from gemma4_lora.data.layouts import _gemini
from gemma4_lora.data.layouts import _hh_rlhf
from gemma4_lora.data.layouts import _layout
from gemma4_lora.data.layouts import _messages
from gemma4_lora.data.layouts import _prompt_response
from gemma4_lora.data.layouts import _responses
from gemma4_lora.data.layouts import _sharegpt

LAYOUTS: dict[str, _layout.Layout] = {
    layout.name: layout
    for layout in (
        _prompt_response.PromptResponse(),
        _messages.Messages(),
        _sharegpt.ShareGpt(),
        _alpaca.Alpaca(),
        _gemini.Gemini(),
        _responses.Responses(),
        _hh_rlhf.HhRlhf(),
    )
}


def by_name(name: str) -> _layout.Layout:
  """Returns the layout of `layout=`.

  Raises:
    ValueError: The name is unknown.
  """
  _choices.check_choice('layout', name, tuple(LAYOUTS))
  return LAYOUTS[name]


def chats() -> str:
  """Returns the choices of `layout=` that are lists of messages, for errors."""
  names = [name for name, layout in LAYOUTS.items() if layout.is_chat]
  return ' or '.join(f'layout={name!r}' for name in names)


def documented[T: type](task: T) -> T:
  """Writes each layout's docstring into that of a task, at `{layouts}`."""
  if task.__doc__:  # Python drops docstrings with -OO.
    # Python 3.13 takes the indentation away.
    task.__doc__ = re.sub(
        r'^( *)\{layouts\}',
        lambda mark: '\n'.join(_entry(x, mark[1]) for x in LAYOUTS.values()),
        task.__doc__,
        flags=re.MULTILINE,
    )
  return task


def _entry(layout: _layout.Layout, indent: str) -> str:
  text = ' '.join((type(layout).__doc__ or '').split())
  return textwrap.fill(
      f'`{layout.name!r}`: {text}',
      width=78,
      initial_indent=f'{indent}* ',
      subsequent_indent=f'{indent}  ',
      break_on_hyphens=False,
  )
