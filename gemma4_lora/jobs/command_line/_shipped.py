"""The configs that come with this package, by name.

In a wheel they are `gemma4_lora/configs`; in a clone, `configs` beside the package.
"""

import os
import pathlib

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


def names() -> list[str]:
  """Returns the names of all."""
  return sorted(x.stem for x in _folder().glob('*.py'))


def _folder() -> pathlib.Path:
  installed = _PACKAGE / 'configs'
  return installed if installed.is_dir() else _PACKAGE.parent / 'configs'
