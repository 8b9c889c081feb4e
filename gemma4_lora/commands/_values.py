"""Types of option values, which are stricter than click's."""

import math
import os
from typing import Any

import click


class Text(click.ParamType):
  """A text that is not empty."""

  name = 'text'

  def convert(self, value: Any, param: Any, ctx: Any) -> str:
    if not value.strip():
      self.fail('it is empty.', param, ctx)
    return value


class Int(click.IntRange):
  """An integer within bounds."""

  name = 'integer'


class Float(click.FloatRange):
  """A finite number within bounds."""

  name = 'number'

  def convert(self, value: Any, param: Any, ctx: Any) -> float:
    found = super().convert(value, param, ctx)
    if not math.isfinite(found):
      self.fail(f'{value!r} is not a finite number.', param, ctx)
    return found


def check_there(option: str, path: str | None) -> None:
  """Raises UsageError if a local path does not exist, before slow imports.

  Args:
    option: Its name, `'--peft'`.
    path: What was given.

  Raises:
    UsageError: There is nothing.
  """
  # The reader of a bucket says whether a path exists.
  if (
      path
      and '://' not in path
      and not os.path.lexists(os.path.expanduser(path))
  ):
    # A misspelt URL has an error of its own.
    if not path.startswith(('gs:', 's3:', 'http:', 'https:')):
      raise click.UsageError(f'{option}={path}: there is no such path.')
