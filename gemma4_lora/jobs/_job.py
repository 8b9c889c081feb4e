"""A custom job of Vertex AI that trains a config on TPUs."""

from __future__ import annotations

from collections.abc import Sequence
import re
import typing
from typing import Any

from gemma4_lora.jobs import _machines
from gemma4_lora.jobs.command_line import _allowed

if typing.TYPE_CHECKING:
  from google.cloud.aiplatform_v1 import types

# Initialises `jax.distributed`, and is Kauldron's command from there on.
COMMAND = ('python', '-m', 'gemma4_lora', 'train')

_SPOT = 'https://cloud.google.com/vertex-ai/docs/training/use-spot-vms'


def custom_job(
    *,
    name: str,
    tpu: _machines.Slice,
    image: str,
    args: Sequence[str],
    command: Sequence[str] = COMMAND,
    spot: bool = False,
    service_account: str | None = None,
) -> types.CustomJob:
  """Returns the job, as `google-cloud-aiplatform` has it.

  A slice is one replica, however many hosts it has: Vertex starts the container
  on each. If a host goes, preempted or broken, the job starts again on all of
  them, and the run goes on from the last checkpoint in its workdir.

  Args:
    name: What the console shows.
    tpu: Chips and machines.
    image: The container's image, in Artifact Registry or on Docker Hub.
    args: Arguments of the command.
    command: Command of the container.
    spot: Whether to use cheaper machines that may be preempted.
    service_account: Account of the job; default: Vertex's own.

  Raises:
    ValueError: It cannot be such a job.
  """
  types = _types()
  if spot and tpu.num_hosts > 1:
    raise ValueError(
        f'--spot with --topology={tpu.topology} of {tpu.num_hosts} hosts'
        f' ({tpu.machine_type}): Vertex has no Spot VMs for slices of several'
        f' hosts ({_SPOT}). Leave --spot out, or take one host.'
    )
  strategies = types.Scheduling.Strategy
  return types.CustomJob(
      display_name=_allowed.JOB_NAME.check(name),
      job_spec=types.CustomJobSpec(
          worker_pool_specs=[
              types.WorkerPoolSpec(
                  machine_spec=types.MachineSpec(
                      machine_type=tpu.machine_type, tpu_topology=tpu.shape
                  ),
                  replica_count=1,
                  container_spec=types.ContainerSpec(
                      image_uri=_allowed.IMAGE.check(image),
                      command=list(command),
                      args=list(args),
                      env=_environment(types),
                  ),
              )
          ],
          scheduling=types.Scheduling(
              restart_job_on_worker_restart=True,
              strategy=strategies.SPOT if spot else strategies.STANDARD,
          ),
          service_account=service_account or '',
      ),
  )


def check_region(region: str | None) -> str:
  """Returns the region, if it is the name of one."""
  if not region:
    raise ValueError(
        '--region=... is missing: where the job runs, such as us-east5. Which'
        ' have TPUs: https://cloud.google.com/vertex-ai/docs/general/locations'
    )
  if re.fullmatch('[a-z]+-[a-z]+[0-9]+-[a-z]', region):
    raise ValueError(
        f'--region={region} is a zone. Its region is {region[:-2]}.'
    )
  if not re.fullmatch('[a-z]+-[a-z]+[0-9]+', region):
    raise ValueError(
        f'--region={_allowed.shown(region)} is not a region, such as us-east5.'
    )
  return region


def check_workdir(workdir: str | None) -> str:
  """Returns the workdir, if all hosts of a job can write to it."""
  if not workdir:
    raise ValueError(
        '--workdir=gs://... is missing: where the run saves, and resumes from.'
    )
  if not workdir.startswith('gs://'):
    raise ValueError(
        f'--workdir={_allowed.shown(workdir)} is not in Cloud Storage, as in'
        ' gs://bucket/folder: what a job writes elsewhere is lost with its'
        ' machine, and it could not resume.'
    )
  return _allowed.WORKDIR.check(workdir).rstrip('/')


def _environment(types: Any) -> list[Any]:
  variables = {
      # Where there is no TPU after all: an error, rather than a CPU's pace.
      'JAX_PLATFORMS': 'tpu,cpu',
      # Lines reach Cloud Logging as they are printed.
      'PYTHONUNBUFFERED': '1',
  }
  return [types.EnvVar(name=k, value=v) for k, v in variables.items()]


def _types() -> Any:
  try:
    from google.cloud.aiplatform_v1 import types  # pylint: disable=g-import-not-at-top
  except ImportError as e:
    raise ValueError(
        'Jobs on Vertex AI need google-cloud-aiplatform: pip install'
        f' "gemma4_lora[vertex]" ({e}).'
    ) from e
  return types
