"""Makes texts of data and files safe for a terminal."""

import re

# Control characters except tab and newline; characters that change direction or
# break lines, by which a text may look like another; and unpaired surrogates,
# which cannot be printed.
_ACTED_UPON = re.compile(
    '[\0-\x08\x0b-\x1f\x7f-\x9f'
    '\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff'
    '\ud800-\udfff]'
)


def escaped(text: str) -> str:
  r"""Returns a text in which `\x1b` and its like are spelled out."""
  return _ACTED_UPON.sub(lambda x: repr(x[0])[1:-1], text)
