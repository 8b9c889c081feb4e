"""Values of a row in messages: short, however large or deep they are."""

import itertools
import reprlib
from typing import Any


def short(value: Any, length: int = 100) -> str:
  """Returns the beginning of `repr(value)`.

  Only what is shown is formatted: a row may hold megabytes of an image, or be
  nested deeper than `repr` can follow.

  Args:
    value: Anything.
    length: The most characters.
  """
  text = _SHORT.repr(value)
  return text if len(text) <= length else f'{text[: length - 3]}...'


class _Short(reprlib.Repr):
  """Repr of a few entries, a few levels deep, in the order of the row."""

  def repr_dict(self, x: dict[Any, Any], level: int) -> str:
    return '{' + self._items(x, level, self._pair) + '}'

  def repr_list(self, x: list[Any], level: int) -> str:
    return '[' + self._items(x, level, lambda v, n: self.repr1(v, n)) + ']'

  def repr_bytes(self, x: bytes, level: int) -> str:
    del level
    return repr(x[:_MOST_CHARACTERS])

  def repr_int(self, x: int, level: int) -> str:
    try:
      return super().repr_int(x, level)
    except ValueError:  # Python prints no more than 4300 digits.
      return f'<int of {x.bit_length()} bits>'

  def _pair(self, item: tuple[Any, Any], level: int) -> str:
    return f'{self.repr1(item[0], level)}: {self.repr1(item[1], level)}'

  def _items(self, x: Any, level: int, say: Any) -> str:
    if not x:
      return ''
    if level <= 0:
      return '...'
    items = x.items() if isinstance(x, dict) else x
    first = itertools.islice(items, _MOST_ITEMS)
    texts = [say(item, level - 1) for item in first]
    if len(items) > _MOST_ITEMS:
      texts.append('...')
    return ', '.join(texts)


_MOST_CHARACTERS = 400
_MOST_ITEMS = 20

_SHORT = _Short()
_SHORT.maxlevel = 8
_SHORT.maxstring = _MOST_CHARACTERS
_SHORT.maxother = _MOST_CHARACTERS
