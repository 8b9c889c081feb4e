"""Checks values of arguments, and suggests close ones."""

from collections.abc import Iterable
from collections.abc import Sequence
import difflib
from typing import Any


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
  """Raises ValueError for an invalid value of an argument."""
  if value not in choices:
    raise ValueError(
        f'{name}={value!r} is none of {list(choices)}.'
        f'{close_match(value, choices)}'
    )


def close_match(name: Any, names: Iterable[Any]) -> str:
  """Returns ` Did you mean ...?`, or nothing if no name is close."""
  close = difflib.get_close_matches(str(name), [str(n) for n in names])
  return f' Did you mean {close[0]!r}?' if close else ''
