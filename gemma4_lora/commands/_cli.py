"""The command line: finds a command, and reports its errors in one line.

By click: help per command, completion in shells and spelling hints. It hands on
arguments that it does not know, so that `--cfg.…` stays Kauldron's own flag.
"""

from collections.abc import Sequence
import difflib
import re
import sys

import click

from gemma4_lora.commands import _commands
from gemma4_lora.commands import _interrupts

_NAME = 'gemma4_lora'


class _Commands(click.Group):
  """Imports a command only when it is used: some take seconds to import."""

  def list_commands(self, ctx: click.Context) -> list[str]:
    return [*_commands.COMMANDS]

  def get_command(
      self, ctx: click.Context, cmd_name: str
  ) -> click.Command | None:
    row = _commands.COMMANDS.get(cmd_name)
    return None if row is None else row.load()

  def format_commands(
      self, ctx: click.Context, formatter: click.HelpFormatter
  ) -> None:
    with formatter.section('Commands'):
      formatter.write_dl(
          [(x.name, x.help) for x in _commands.COMMANDS.values()]
      )

  def resolve_command(self, ctx: click.Context, args: list[str]):
    name = args[0]
    if name not in _commands.COMMANDS:
      if name.startswith('-'):
        raise click.UsageError(
            f'{name} comes behind a command: {_NAME} COMMAND {name}'
        )
      if name == 'help':
        raise click.UsageError(
            f'write {_NAME} --help, or {_NAME} COMMAND --help.'
        )
      close = difflib.get_close_matches(name, _commands.COMMANDS, n=1)
      hint = f' Did you mean {close[0]!r}?' if close else ''
      raise click.UsageError(
          f'there is no command {name!r}.{hint} The commands:'
          f' {", ".join(_commands.COMMANDS)}.'
      )
    return super().resolve_command(ctx, args)


def _normalized(name: str) -> str:
  """Takes `--dry-run` for `--dry_run`, and `--no-lora` for `--nolora`."""
  return re.sub('^no_', 'no', name.replace('-', '_'))


@click.group(
    name=_NAME,
    cls=_Commands,
    context_settings=dict(
        help_option_names=['--help', '-h'],
        token_normalize_func=_normalized,
        # Options of the group come before the command, all others after it.
        ignore_unknown_options=True,
    ),
    invoke_without_command=True,
)
@click.version_option(package_name=_NAME)
@click.pass_context
def cli(ctx: click.Context) -> None:
  """Fine-tune Gemma 4 with LoRA in JAX.

  Shell completion: eval "$(_GEMMA4_LORA_COMPLETE=bash_source gemma4_lora)", or
  zsh_source, fish_source.
  """
  if ctx.invoked_subcommand is None:
    click.echo(ctx.get_help())


def run(argv: Sequence[str]) -> int:
  """Runs a command.

  Args:
    argv: The command and its options.

  Returns:
    The exit status: 1 for what the command cannot do, which is one line.
  """
  try:
    with _interrupts.taken():
      status = cli.main([*argv], prog_name=_NAME, standalone_mode=False)
  except click.ClickException as e:
    return _end(e.format_message())
  except click.Abort:  # Ctrl-C.
    _interrupts.end()
    return _interrupts.STATUS
  except Exception as e:
    line = _told(e)
    if line is None:
      raise
    return _end(line)
  return status if isinstance(status, int) else 0


def _end(line: str) -> int:
  # Functions that write name themselves in their errors.
  prefix = '' if line.startswith(f'{_NAME} ') else f'{_NAME}: '
  # The same as `host._escapes`, which needs our dependencies.
  line = ''.join(
      c if c.isprintable() or c in '\n\t' else repr(c)[1:-1] for c in line
  )
  print(f'{prefix}{line}', file=sys.stderr)
  return 1


def _told(e: Exception) -> str | None:
  """Returns the message of an error meant for users; None for other errors."""
  # Not at the top: `--help` needs no Kauldron.
  from gemma4_lora.host import _storage_errors  # pylint: disable=g-import-not-at-top
  from gemma4_lora.jobs.command_line import _config_file  # pylint: disable=g-import-not-at-top

  if line := _config_file.explain_resolved(e):
    return line
  if isinstance(e, _config_file.OF_USERS) and _config_file.is_ours(e):
    return str(e)
  if explained := _storage_errors.explain(e):
    return str(explained)
  return None
