"""`summary` and `show`: show what a config adapts, and its data."""

from __future__ import annotations

import typing
from typing import Any

import click

from gemma4_lora.commands import _options

if typing.TYPE_CHECKING:
  from gemma4_lora.jobs.command_line import _config


@_options.takes_config(
    'gemma4_lora summary --cfg=configs/gemma4_e2b_lora_mtnt.py'
    ' --cfg.model.rank=8'
)
def summary(config: _config.Config) -> None:
  """Print what the config's LoRA adapts, without allocating the model."""
  from gemma4_lora import g4  # pylint: disable=g-import-not-at-top

  print(g4.nn.summary(config.part('model')))


class _Count(click.ParamType):
  """A number of rows; None for `all`."""

  name = 'N|all'

  def convert(self, value, param, ctx) -> int | None:
    if value == 'all':
      return None
    if isinstance(value, str) and not (value.isdecimal() and int(value)):
      self.fail(f'{value!r} is no number of rows, and not all.', param, ctx)
    return int(value)


@_options.takes_config('gemma4_lora show --cfg=my_config.py --rows=5')
@click.option(
    '--rows',
    'num_shown',
    type=click.IntRange(0),
    default=5,
    show_default=True,
    metavar='N',
    help='Rows to show, of each dataset.',
)
@click.option(
    '--malformed',
    'show_malformed',
    is_flag=True,
    help='Malformed rows, in place of others, by reason.',
)
@click.option(
    '--count',
    type=_Count(),
    default='10000',
    show_default=True,
    metavar='N|all',
    help='Rows to count, evenly spread.',
)
@click.option(
    '--dataset',
    default='train_ds',
    show_default=True,
    metavar='NAME',
    help='Which of the config, as in evals.eval.ds.',
)
def show(config: _config.Config, **options: Any) -> int:
  """Print what the config trains on, and count it.

  Rows and tokens, how many rows are malformed and why, and the first rows,
  coloured by what is trained. No model is made. The exit status is 1 if training
  would stop.
  """
  from gemma4_lora.data.reports import _show_command  # pylint: disable=g-import-not-at-top

  return int(not _show_command.run(config.value, **options))
