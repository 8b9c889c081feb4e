"""The configs that come with this package, by name.

In a wheel they are `gemma4_lora/configs`; in a clone, `configs` beside the package.
"""

import difflib
import os
import pathlib

from gemma4_lora.jobs.command_line import _allowed

_PACKAGE = pathlib.Path(__file__).parents[2]
_PREFIX = 'gemma4_lora.configs/'


def find(given: str) -> str:
  """Returns the file of a config.

  Args:
    given: A path, or the name of a shipped config: `quickstart`, or
      `gemma4_lora.configs/quickstart.py`. `:ARGUMENT` of its `get_config` may
      follow.

  Returns:
    The same, if it is no such name or if there is a file with this path.
  """
  path, *argument = given.split(':', 1)
  name = path.removeprefix(_PREFIX).removesuffix('.py')
  if os.path.exists(path) or name not in names():
    return given
  return ':'.join([os.fspath(_folder() / f'{name}.py'), *argument])


def missing(given: str, *, flag: str = '--cfg') -> str | None:
  """Returns the message for a config that is not there; None if it is.

  Args:
    given: As for `find`.
    flag: Name of the flag.
  """
  path = find(given).partition(':')[0]
  if not path or '://' in given or os.path.lexists(path):
    return None
  return (
      f'{flag}={_allowed.shown(given)}: there is no such file.'
      f'{_close_files(path)} By name there are: {", ".join(names())}.'
  )


def _close_files(path: str) -> str:
  """Returns which files beside it, or names, may be meant."""
  file = pathlib.Path(path)
  try:
    files = [x.name for x in file.parent.iterdir() if x.suffix == '.py']
  except OSError:
    files = []
  if close := difflib.get_close_matches(file.name, files, n=1):
    return f' Did you mean {file.with_name(close[0])}?'
  close = difflib.get_close_matches(file.stem, names(), n=1)
  return f' Did you mean {close[0]}?' if close else ''


def names() -> list[str]:
  """Returns the names of all."""
  return sorted(x.stem for x in _folder().glob('*.py'))


def _folder() -> pathlib.Path:
  installed = _PACKAGE / 'configs'
  return installed if installed.is_dir() else _PACKAGE.parent / 'configs'
