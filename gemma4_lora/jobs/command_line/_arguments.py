"""Parses arguments of a command line; errors are one line."""

from collections.abc import Sequence
import re
import sys
from typing import NoReturn

from absl import flags

from gemma4_lora.host import _escapes
from gemma4_lora.jobs.command_line import _config_file

_CONFIG = 'cfg'


def parse(argv: Sequence[str]) -> list[str]:
  """`absl.flags.FLAGS` for `app.run`; errors are one line.

  Args:
    argv: Name of the program, and its arguments.

  Returns:
    What is no flag.
  """
  try:
    return read(argv, flags.FLAGS)
  except _config_file.ConfigError as e:
    end(str(e))


def read(argv: Sequence[str], values: flags.FlagValues) -> list[str]:
  """Reads flags, the config's among them.

  Args:
    argv: Name of the program, and its arguments.
    values: The flags that there are.

  Returns:
    What is no flag.

  Raises:
    ConfigError: They are wrong, or the config cannot be read.
  """
  argv = list(argv)
  try:
    check_have_values(values.read_flags_from_files(argv, force_gnu=False))
    return values(argv)
  except Exception as e:  # The user's config may raise, too.
    line = _explain(e, argv)
    if line is None:
      raise
    raise _config_file.ConfigError(line) from e


def end(line: str) -> NoReturn:
  """Ends the command."""
  print(f'gemma4_lora: {_escapes.escaped(line)}', file=sys.stderr)
  sys.exit(1)


def overrides(argv: Sequence[str], *, name: str = _CONFIG) -> list[str]:
  """Returns the names of what changes the config, as in `model.rank`."""
  found = (_override(x, name) for x in argv)
  return [x[1] for x in found if x is not None]


def without_value(argv: Sequence[str], *, name: str = _CONFIG) -> list[str]:
  """Returns the names of what the command line sets without a value."""
  found = (_override(x, name) for x in argv)
  return [x[1] for x in found if x is not None and x[2] is None]


def check_have_values(argv: Sequence[str], *, name: str = _CONFIG) -> None:
  """Raises for `--cfg.seed 7`, which would set `True` and leave the 7 aside.

  Raises:
    ConfigError: There is one such.
  """
  for argument, after in zip(argv, argv[1:], strict=False):
    match = _override(argument, name)
    if match is None or match[2] is not None:
      continue
    if not after.startswith('-') or re.match(r'-\.?\d', after):
      raise _config_file.ConfigError(
          f'{argument} {after}: write {argument}={after}. Without "=" it sets'
          ' True.'
      )


def given(argv: Sequence[str]) -> str | None:
  """Returns what the flag of the config is given."""
  for argument, after in zip(argv, [*argv[1:], ''], strict=False):
    match = re.fullmatch(rf'--?{_CONFIG}(?:=(.*))?', argument, re.DOTALL)
    if match is not None:
      return after if match[1] is None else match[1]
  return None


def _override(argument: str, name: str) -> re.Match[str] | None:
  return re.fullmatch(rf'--?(?:no)?{name}\.([^=]+)(=.*)?', argument, re.DOTALL)


def _explain(error: Exception, argv: Sequence[str]) -> str | None:
  """Returns the line for what parsing has raised; None if it has none."""
  if isinstance(error, _config_file.ConfigError):
    return str(error)
  path = given(argv)
  if not isinstance(error, flags.Error):
    return None if path is None else _config_file.explain(error, path)
  if path is None and f"'{_CONFIG}." in str(error):
    return f'--{_CONFIG}=... is missing: the config of the run.'
  if path is not None and f'flag --{_CONFIG}={path}:' in str(error):
    # absl has made this of a TypeError or ValueError.
    return _config_file.explain(error, path)
  return f'{" ".join(str(error).split())}'
