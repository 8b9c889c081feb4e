"""`eval`: the evaluators of a run, on one of its checkpoints."""

from __future__ import annotations

import typing

import click

from gemma4_lora.commands import _options
from gemma4_lora.commands import _values

if typing.TYPE_CHECKING:
  from gemma4_lora.jobs.command_line import _config


@_options.takes_config(
    'gemma4_lora eval --cfg=my_config.py --workdir=/tmp/run --eval=eval',
    reads_run=True,
    name='eval',
)
@click.option(
    '--eval',
    'names',
    multiple=True,
    type=_values.Text(),
    metavar='NAME',
    help="One of the config's evals=; may be given several times. Default: all.",
)
@_options.step
def evaluate(
    config: _config.Config, *, names: tuple[str, ...], step: int
) -> None:
  """Run the config's evaluators on a checkpoint of a run, and print the metrics.

  Nothing is written to the run.
  """
  _ = config.workdir  # An error if there is none.
  from gemma4_lora.train import _evaluate_run  # pylint: disable=g-import-not-at-top

  print(_evaluate_run.evaluate(config.value, names=names, step=step))
