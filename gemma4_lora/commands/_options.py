"""Options that several commands share, and the config of a command.

A config's own flags are Kauldron's: `--cfg=FILE`, and `--cfg.model.rank=8` for
any of its fields.
"""

from collections.abc import Callable
import difflib
import functools
import os
import re
import sys
from typing import Any

import click

from gemma4_lora.commands import _values
from gemma4_lora.jobs.command_line import _shipped

_OF_CONFIG = re.compile(r'--?(no)?cfg\.')

step = click.option(
    '--step',
    type=_values.Int(-1),
    default=-1,
    metavar='N',
    help='Which checkpoint of the run. Default: the last.',
)
overwrite = click.option(
    '--overwrite', is_flag=True, help='Replace --out if it exists.'
)
topology = click.option(
    '--topology',
    default='v6e:1x1',
    show_default=True,
    metavar='CHIPS',
    help='Chips, such as v6e:2x4, v5e:4x4, v5p:2x2x1, tpu7x:2x2x1.',
)
cache = click.option(
    '--cache',
    type=_values.Text(),
    metavar='FOLDER',
    help='Folder of earlier plans; "none" for none. Default:'
    ' $XDG_CACHE_HOME/gemma4_lora/plans, or ~/.cache.',
)

_SERVERS = ('peft', 'vllm', 'sglang', 'llama.cpp', 'mlx')


def server(what: str, **kwargs: Any) -> Callable[..., Any]:
  """Returns the option `--for`."""
  return click.option(
      '--for',
      'server',
      type=click.Choice(_SERVERS),
      show_default='default' in kwargs,
      help=what,
      **kwargs,
  )


def be_quiet() -> None:
  """Silences libraries that print when they are imported, as TensorFlow."""
  if not sys.stderr.isatty():
    # A setting of tqdm, read at import. In a log, each update of a progress bar
    # is a line.
    os.environ.setdefault('TQDM_DISABLE', '1')
  import gemma4_lora.quiet  # noqa: F401  # pylint: disable=g-import-not-at-top


def out(what: str) -> Callable[..., Any]:
  return click.option(
      '--out',
      required=True,
      type=_values.Text(),
      metavar='FOLDER',
      help=f'Where to write {what}.',
  )


def takes_config(
    example: str, *, reads_run: bool = False, **settings: Any
) -> Callable[..., Any]:
  """Makes a command whose first argument is the config, a `_config.Config`.

  Args:
    example: A command line, for the help.
    reads_run: Whether the folder of the run is there already.
    **settings: Arguments of `click.command`.
  """

  def decorate(function: Callable[..., Any]) -> click.Command:
    @click.command(
        cls=_OfConfig,
        context_settings=dict(
            ignore_unknown_options=True, allow_extra_args=True
        ),
        epilog=f'\b\nExample:\n  {example}',
        **settings,
    )
    @click.option(
        '--cfg',
        metavar='FILE',
        type=_values.Text(),
        help='Config of the run: a Python file, or the name of a shipped config,'
        ' as quickstart. --cfg.FIELD=VALUE changes a'
        ' field of it, as in --cfg.model.rank=8.',
    )
    @click.option(
        '--workdir',
        type=_values.Text(),
        metavar='FOLDER',
        help='Folder of the run: short for --cfg.workdir.',
    )
    @click.option(
        '--verbosity',
        type=int,
        default=-1,
        metavar='N',
        help='Log level: -1 warnings (default), 0 notes, 1 all.',
    )
    @click.pass_context
    @functools.wraps(function)
    def command(
        ctx: click.Context,
        /,
        cfg: str | None,
        workdir: str | None,
        verbosity: int,
        **options: Any,
    ) -> Any:
      if cfg is None:
        for argument in ctx.args:
          if argument.startswith('-') and not _OF_CONFIG.match(argument):
            raise click.UsageError(_unknown(ctx, argument, None))
        raise click.UsageError('--cfg=... is missing: the config of the run.')
      # Cheap checks come first.
      if message := _shipped.missing(cfg):
        raise click.UsageError(message)
      if reads_run:
        _values.check_there('--workdir', workdir)
      for name in ('peft', 'merged'):
        _values.check_there(f'--{name}', options.get(name))
      be_quiet()
      # Not at the top: `--help` does not wait for Kauldron.
      from absl import logging  # pylint: disable=g-import-not-at-top

      from gemma4_lora.jobs.command_line import _config  # pylint: disable=g-import-not-at-top

      logging.set_verbosity(verbosity)  # Orbax logs a lot.
      config = _config.load(
          cfg, overrides=_overrides(ctx, cfg), workdir=workdir
      )
      return function(config, **options)

    return command

  return decorate


class _OfConfig(click.Command):
  """Lists its own options first: those of the config are the same for all."""

  def format_options(self, ctx, formatter) -> None:
    common = ('cfg', 'workdir', 'verbosity')
    groups: dict[bool, list[Any]] = {False: [], True: []}
    for param in self.get_params(ctx):
      if record := param.get_help_record(ctx):
        groups[param.name in common].append(record)
    for is_common, records in groups.items():
      if records:
        with formatter.section('Config' if is_common else 'Options'):
          formatter.write_dl(records)


def _overrides(ctx: click.Context, cfg: str) -> list[str]:
  """Returns the flags that change the config, and refuses all others.

  Raises:
    UsageError: There is another argument.
    ConfigError: A value is behind a space.
  """
  from gemma4_lora.jobs.command_line import _arguments  # pylint: disable=g-import-not-at-top

  _arguments.check_have_values(ctx.args)
  for argument in ctx.args:
    if not argument.startswith('-'):
      raise click.UsageError(
          f'{ctx.command.name} takes options alone. Got: {argument!r}.'
      )
    if not _OF_CONFIG.match(argument):
      raise click.UsageError(_unknown(ctx, argument, cfg))
  return ctx.args


def _unknown(ctx: click.Context, argument: str, cfg: str | None) -> str:
  """Returns the message for an option that the command does not have."""
  name, _, value = argument.lstrip('-').partition('=')
  message = f'{ctx.command.name} has no option --{name}.'
  value = f'={value}' if value else ''
  fields = []
  if cfg is not None:
    from gemma4_lora.jobs.command_line import _config  # pylint: disable=g-import-not-at-top

    found = _config.fields_named(cfg, name.rpartition('.')[2])
    fields = [f'--cfg.{x}{value}' for x in found if x.endswith(name)]
  known = [x.lstrip('-') for p in ctx.command.params for x in p.opts]
  known.append('help')
  close = [f'--{x}' for x in difflib.get_close_matches(name, known, n=1)]
  meant = [*fields, *close][:3]
  return f'{message} Did you mean {" or ".join(meant)}?' if meant else message
