"""Flags of a job, of the commands `vertex` and `xmanager launch` alike."""

import os

from absl import flags
from ml_collections import config_flags

from gemma4_lora.jobs import _overrides
from gemma4_lora.jobs import _request

_REGION = flags.DEFINE_string('region', None, 'vertex: where, as in us-east5.')
_WORKDIR = flags.DEFINE_string(
    'workdir',
    None,
    'Folder of the run, as --cfg.workdir. vertex: gs://bucket/folder.',
)
_PROJECT = flags.DEFINE_string(
    'project', None, 'vertex: of Google Cloud. Default: $GOOGLE_CLOUD_PROJECT.'
)
_IMAGE = flags.DEFINE_string(
    'image',
    None,
    'vertex: container image. Default: train, in the repository gemma4-lora of'
    " the project's Artifact Registry.",
)
_MACHINE_TYPE = flags.DEFINE_string(
    'machine_type',
    None,
    'vertex: where there are several for a topology. Default: one host.',
)
_JOB_NAME = flags.DEFINE_string(
    'job_name', None, "vertex: what the console shows. Default: the config's."
)
_SPOT = flags.DEFINE_bool('spot', False, 'vertex: on Spot VMs; one host only.')
_SERVICE_ACCOUNT = flags.DEFINE_string(
    'service_account', None, 'vertex: what the job acts as.'
)
_DRY_RUN = flags.DEFINE_bool(
    'dry-run', False, 'vertex: print the job, and submit nothing.'
)
_DRY_RUN_TOO = flags.DEFINE_alias('dry_run', 'dry-run')
FORCE = flags.DEFINE_bool(
    'force', False, 'vertex: go on, whatever the planner says.'
)
PLAN = flags.DEFINE_bool('plan', True, 'vertex: ask the planner first.')
DOCKERFILE = flags.DEFINE_bool(
    'dockerfile', False, 'vertex: print a Dockerfile for the image, and no job.'
)


def request(cfg: flags.FlagHolder, topology: str) -> _request.Request:
  """Returns what the flags ask for.

  Args:
    cfg: The flag of the config.
    topology: See `_machines.slice_of`.
  """
  return _request.Request(
      config=config(cfg),
      topology=topology,
      region=_REGION.value,
      workdir=workdir(cfg),
      project=_PROJECT.value or os.environ.get('GOOGLE_CLOUD_PROJECT'),
      image=_IMAGE.value,
      machine_type=_MACHINE_TYPE.value,
      name=_JOB_NAME.value,
      spot=_SPOT.value,
      service_account=_SERVICE_ACCOUNT.value,
      dry_run=_DRY_RUN.value,
  )


def config(cfg: flags.FlagHolder) -> _request.Config:
  """Returns what the flag of a config was given on the command line."""
  return _request.Config(
      path=config_flags.get_config_filename(flags.FLAGS[cfg.name]),
      overrides=_overrides.given(cfg.name),
  )


def workdir(cfg: flags.FlagHolder) -> str | None:
  """Returns `--workdir` or `--cfg.workdir`, which are one flag."""
  return _overrides.workdir(_WORKDIR, name=cfg.name)
