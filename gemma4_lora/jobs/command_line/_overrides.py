"""Overrides of a config on a command line, and its workdir.

`--workdir` and `--cfg.workdir` are one flag: each command takes either.
"""

from collections.abc import Sequence
import re

from gemma4_lora.jobs.command_line import _allowed


def given(argv: Sequence[str], *, name: str = 'cfg') -> tuple[str, ...]:
  """Returns the overrides of a config, workdir aside, as `--cfg.NAME=VALUE`.

  Args:
    argv: Arguments of a command.
    name: Name of the config's flag.

  Raises:
    ValueError: One cannot be handed on to a job.
  """
  overrides = (x for x in argv if re.match(rf'--?(no)?{name}\.', x))
  return tuple(
      _allowed.check_override(override)
      for override in overrides
      # Without a value, as `--nocfg.flag`, they are booleans.
      if override.partition('=')[0].partition('.')[2] != 'workdir'
  )


def for_kauldron(argv: Sequence[str], *, name: str = 'cfg') -> list[str]:
  """Returns arguments with `--cfg.workdir=…` for `--workdir=…`.

  Args:
    argv: Arguments of Kauldron's command, which has no `--workdir`.
    name: Name of the config's flag.

  Raises:
    ValueError: Both are given, and differ.
  """
  kept, found = [], {}
  arguments = iter(argv)
  for argument in arguments:
    match = re.fullmatch(
        rf'--?(workdir|{name}\.workdir)(?:=(.*))?', argument, re.DOTALL
    )
    if match is None:
      kept.append(argument)
    else:
      value = match[2] if match[2] is not None else next(arguments, '')
      found[match[1]] = value
  value = _one(found.get('workdir'), found.get(f'{name}.workdir'), name=name)
  # Behind the config, which is to come before what changes it.
  return kept if value is None else [*kept, f'--{name}.workdir={value}']


def _one(ours: str | None, override: str | None, *, name: str) -> str | None:
  if ours is not None and override is not None and ours != override:
    raise ValueError(
        f'--workdir={_allowed.shown(ours)} and --{name}.workdir='
        f'{_allowed.shown(override)} are one flag, and differ: give one of them.'
    )
  return override if ours is None else ours
