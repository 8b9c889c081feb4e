"""Options of a job, of `gemma4_lora vertex` and `xmanager launch` alike."""

from __future__ import annotations

import dataclasses
import os
import typing
from typing import Any

from gemma4_lora.jobs import _request
from gemma4_lora.jobs.command_line import _overrides

if typing.TYPE_CHECKING:
  from gemma4_lora.jobs.command_line import _config


@dataclasses.dataclass(frozen=True)
class Option:
  """One option; a bool as `default` makes it a switch."""

  name: str
  help: str
  default: str | bool | None = None


OPTIONS = (
    Option('region', 'Where, as in us-east5.'),
    Option('project', 'Of Google Cloud. Default: $GOOGLE_CLOUD_PROJECT.'),
    Option(
        'image',
        'Container image. Default: train, in the repository gemma4-lora of the'
        " project's Artifact Registry.",
    ),
    Option(
        'machine_type',
        'Where there are several for a topology. Default: one host.',
    ),
    Option('job_name', "What the console shows. Default: the config's name."),
    Option('spot', 'On Spot VMs; one host only.', False),
    Option('service_account', 'What the job acts as.'),
    Option('dry_run', 'Print the job, and submit nothing.', False),
    Option('plan', 'Ask the planner first.', True),
    Option('force', 'Go on, whatever the planner says.', False),
)


def request(
    config_of_run: _config.Config,
    *,
    topology: str,
    project: str | None,
    job_name: str | None,
    **options: Any,
) -> _request.Request:
  """Returns what the options ask for.

  Args:
    config_of_run: The config.
    topology: See `_machines.slice_of`.
    project: Of Google Cloud.
    job_name: What the console shows.
    **options: The others of `OPTIONS`, without `plan` and `force`.
  """
  return _request.Request(
      config=config(config_of_run),
      topology=topology,
      workdir=config_of_run.given_workdir,
      project=project or os.environ.get('GOOGLE_CLOUD_PROJECT'),
      name=job_name,
      **options,
  )


def config(config_of_run: _config.Config) -> _request.Config:
  """Returns the config as a job takes it."""
  return _request.Config(
      path=config_of_run.path,
      overrides=_overrides.given(config_of_run.argv),
  )
