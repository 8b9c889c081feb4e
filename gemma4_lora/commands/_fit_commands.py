"""`plan` and `vertex`: plan a training step for chips, and submit a job."""

from __future__ import annotations

from collections.abc import Callable
import typing
from typing import Any

import click

from gemma4_lora.commands import _options
from gemma4_lora.commands import _status
from gemma4_lora.commands import _values
from gemma4_lora.jobs import _job_options

if typing.TYPE_CHECKING:
  from gemma4_lora.jobs.command_line import _config


@_options.takes_config(
    'gemma4_lora plan --cfg=configs/gemma4_e2b_lora_mtnt.py --topology=v6e:1x1'
    ' --batch=4 --length=2048'
)
@_options.topology
@click.option(
    '--sweep',
    'with_sweep',
    is_flag=True,
    help='Search the largest batch and length that fit.',
)
@click.option(
    '--batch',
    type=_values.Int(1),
    metavar='N',
    help="Sequences in a step, in place of the config's.",
)
@click.option(
    '--length',
    type=_values.Int(1),
    metavar='N',
    help="Tokens of a sequence, in place of the config's.",
)
@click.option(
    '--with_logging', is_flag=True, help='The step that returns metrics too.'
)
@_options.cache
def plan(config: _config.Config, **options: Any) -> int:
  """Compile the training step for chips that need not be here.

  --topology takes cpu, cpu:8 and gpu, too. The exit status is 0 if the step fits
  (with --sweep: if any does), 1 if not, and 2 if there is no answer.
  """
  from gemma4_lora.tpu import _plan_command  # pylint: disable=g-import-not-at-top

  with _status.Status('gemma4_lora plan') as status:
    return _plan_command.run(
        config.value,
        say=lambda text: status.say(text) if text else status.clear(),
        **options,
    )


def _of_a_job(command: Callable[..., Any]) -> Callable[..., Any]:
  """Adds the options of `_job_options`."""
  for option in reversed(_job_options.OPTIONS):
    name = f'--{option.name}'
    if option.default is True:
      name = f'{name}/--no{option.name}'
    add = click.option(
        name,
        default=option.default,
        is_flag=isinstance(option.default, bool),
        help=option.help,
    )
    command = add(command)
  return command


@_options.takes_config(
    'gemma4_lora vertex --cfg=configs/gemma4_e2b_lora_mtnt.py'
    ' --topology=v6e:1x1 --region=us-east5 --project=my-project'
    ' --workdir=gs://my-bucket/run --dry_run'
)
@_options.topology
@_of_a_job
@click.option(
    '--dockerfile',
    is_flag=True,
    help='Print a Dockerfile for the image, and no job.',
)
@_options.cache
def vertex(
    config: _config.Config,
    *,
    topology: str,
    dockerfile: bool,
    cache: str | None,
    plan: bool,
    force: bool,
    **options: Any,
) -> int:
  """Plan the config, and submit the job that trains it on Vertex AI.

  A config that does not fit is not submitted: the exit status is then that of
  plan.
  """
  from gemma4_lora.jobs import _vertex_command  # pylint: disable=g-import-not-at-top

  if dockerfile:
    _vertex_command.print_dockerfile(_job_options.config(config))
    return 0
  return _vertex_command.run(
      config.value,
      _job_options.request(config, topology=topology, **options),
      plan=plan,
      force=force,
      cache=cache,
  )
