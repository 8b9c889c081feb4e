"""The config of a command, with what the command line changes in it."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import sys
from typing import Any

from absl import flags
from kauldron import konfig

from gemma4_lora.jobs.command_line import _arguments
from gemma4_lora.jobs.command_line import _booleans
from gemma4_lora.jobs.command_line import _config_file
from gemma4_lora.jobs.command_line import _overrides
from gemma4_lora.jobs.command_line import _shipped

_NAME = 'cfg'
_WORKDIR = f'--{_NAME}.workdir='


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """A config, as a command line gives it.

  Attributes:
    path: Its file, as it was given.
    argv: Flags that change it, as `--cfg.seed=1`.
    value: The config with these changes, a `konfig.ConfigDict`.
  """

  path: str
  argv: tuple[str, ...]
  value: Any

  def part(self, name: str) -> Any:
    """Returns one field, resolved: the run's data may not be at hand here."""
    value = self.value.get(name)
    return None if value is None else konfig.resolve(value)

  @property
  def given_workdir(self) -> str | None:
    """What the command line says; None if it does not."""
    found = [x for x in self.argv if x.startswith(_WORKDIR)]
    return found[-1].removeprefix(_WORKDIR) if found else None

  @property
  def workdir(self) -> str:
    """Folder of the run.

    Raises:
      ConfigError: There is none.
    """
    if not self.value.get('workdir'):
      raise _config_file.ConfigError(
          '--workdir=... is missing: the folder of the run.'
      )
    return self.value.workdir


def load(
    path: str, *, overrides: Sequence[str] = (), workdir: str | None = None
) -> Config:
  """Returns the config, as Kauldron's flag reads it.

  Args:
    path: A Python file, and perhaps `:ARGUMENT` of its `get_config`; or the
      name of a shipped one, see `_shipped`.
    overrides: Flags that change it, as `--cfg.seed=1`.
    workdir: Short for `--cfg.workdir`.

  Raises:
    ConfigError: It cannot be read, or lacks what the overrides change.
    ValueError: There are two workdirs, which differ.
  """
  ours = [] if workdir is None else [f'--workdir={workdir}']
  argv = _overrides.for_kauldron([*overrides, *ours], name=_NAME)
  values = flags.FlagValues()
  konfig.DEFINE_config_file(
      _NAME, None, 'Config of the run.', lock_config=False, flag_values=values
  )
  before = sys.argv
  # The flag looks there for what changes the config.
  sys.argv = [before[0], f'--{_NAME}={_shipped.find(path)}', *argv]
  try:
    _arguments.read(sys.argv, values)
  finally:
    sys.argv = before
  value = _config_file.read(values[_NAME], overrides=_arguments.overrides(argv))
  _booleans.check(values[_NAME], argv)
  return Config(path=path, argv=tuple(argv), value=value)


def fields_named(path: str, name: str) -> list[str]:
  """Returns where the config has fields of a name, as `model.rank`.

  Nothing if it cannot be read.
  """
  try:
    return sorted(_named(load(path).value, name), key=lambda x: x.count('.'))
  except ValueError:
    return []


def _named(node: Any, name: str, prefix: str = '') -> Iterator[str]:
  if isinstance(node, Mapping) or isinstance(node, konfig.ConfigDict):
    for key, value in node.items():
      if key == name:
        yield f'{prefix}{key}'
      yield from _named(value, name, f'{prefix}{key}.')
