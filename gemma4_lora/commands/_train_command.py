"""`train`: Kauldron's command, on one host or several."""

from typing import Any

import click

from gemma4_lora.commands import _interrupts
from gemma4_lora.commands import _options
from gemma4_lora.commands import _values
from gemma4_lora.jobs.command_line import _shipped


@click.command(
    context_settings=dict(ignore_unknown_options=True, allow_extra_args=True),
    epilog='\b\nExample:\n  gemma4_lora train --cfg=my_config.py --workdir=/tmp/run',
)
@click.option(
    '--cfg',
    metavar='FILE',
    type=_values.Text(),
    help='Config of the run: a Python file, or the name of a shipped config,'
    ' as quickstart. --cfg.FIELD=VALUE changes a field of'
    ' it, as in --cfg.model.rank=8.',
)
@click.option(
    '--workdir',
    type=_values.Text(),
    metavar='FOLDER',
    help='Folder of the run, here or in a bucket: short for --cfg.workdir.',
)
@click.option(
    '--eval_names',
    metavar='NAMES',
    help='Evaluate these evaluators of the config, and do not train.',
)
@click.option(
    '--verbosity',
    metavar='N',
    help='Log level: -1 warnings (default), 0 notes, 1 all.',
)
@click.pass_context
def train(
    ctx: click.Context,
    cfg: str | None,
    workdir: str | None,
    eval_names: str | None,
    verbosity: str | None,
) -> None:
  """Train a config, as python -m kauldron.main does.

  On several hosts where the environment says so. It takes all flags of Kauldron
  and of absl, too. Exit status: 0 the run is complete; 75 it was stopped, all is
  saved, and the same command goes on; 76 another host is gone; 1 an error.
  """
  if cfg and (message := _shipped.missing(cfg)):
    raise click.UsageError(message)
  from gemma4_lora.host import _stop_signals  # pylint: disable=g-import-not-at-top

  _interrupts.give_back()
  _stop_signals.of_process().begin()
  _options.be_quiet()
  from gemma4_lora.jobs import _train  # pylint: disable=g-import-not-at-top

  cfg = cfg and _shipped.find(cfg)
  given = {
      'cfg': cfg,
      'workdir': workdir,
      'eval_names': eval_names,
      'verbosity': verbosity,
  }
  _train.run(
      [
          *(f'--{name}={value}' for name, value in given.items() if value),
          *ctx.args,
      ],
      saved=lambda: _live_run().saved(),
      silence=lambda: _live_run().silence(),
  )


def _live_run() -> Any:
  # Not above: it asks for jax's devices.
  from gemma4_lora.ckpts import _live_run as module  # pylint: disable=g-import-not-at-top

  return module
