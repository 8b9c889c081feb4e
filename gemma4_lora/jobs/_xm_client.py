"""Supplements XManager for TPUs of Vertex AI later than v3."""

from collections.abc import Sequence
from typing import Any

from xmanager import xm
from xmanager import xm_local
from xmanager.cloud import vertex

from gemma4_lora.jobs import _job
from gemma4_lora.jobs import _machines
from gemma4_lora.jobs import _request
from gemma4_lora.jobs import _submit
from gemma4_lora.jobs import _vertex_command
from gemma4_lora.jobs import _yaml

# XManager's names of chips, if they differ from ours.
_XM_CHIPS = {'tpu7x': 'v7x'}


def executor(tpu: _machines.Slice) -> xm_local.Vertex:
  """Returns an executor with the chips of a slice."""
  resource = xm.ResourceType[f'TPU_{_XM_CHIPS.get(tpu.chip, tpu.chip)}']
  return xm_local.Vertex(xm.JobRequirements({resource: tpu.shape}))


class VertexClient(vertex.Client):
  """XManager's client of Vertex AI, for TPUs with a topology.

  XManager 0.8.5 knows `TPU_V6E`, but its client knows machines of Vertex AI for
  TPU v2 and v3 alone, and raises KeyError for others:
  https://github.com/google-deepmind/xmanager/issues/63.
  """

  def __init__(self, request: _request.Request, client: Any = None):
    """Initializes the client.

    Args:
      request: Project, region, and what XManager has no word for: the machine
        type, Spot VMs. With `dry_run`, jobs are printed.
      client: A `JobServiceClient`; default: see `_submit.submit`.
    """
    # Not `super().__init__`: without a project, it looks for credentials.
    self.project = request.project
    self.location = _job.check_region(request.region)
    self.parent = request.parent
    self._request = request
    self._client = client

  def launch(self, name: str, jobs: Sequence[xm.Job]) -> str:
    """See `vertex.Client.launch`: returns the name of the job."""
    if len(jobs) != 1:
      raise ValueError(
          f'A work unit is one job on one slice of TPUs. Got: {len(jobs)} jobs.'
      )
    (job,) = jobs
    executable: Any = job.executable
    custom_job = _job.custom_job(
        name=name,
        tpu=_slice_of(job, self._request.machine_type),
        image=executable.image_path,
        args=xm.merge_args(executable.args, job.args).to_list(str),
        spot=self._request.spot,
        service_account=self._request.service_account,
    )
    if self._request.dry_run:
      print(_vertex_command.header(self._request), end='')
      print(_yaml.to_yaml(custom_job.job_spec), end='')
      return f'{self.parent}/customJobs/0'
    created = _submit.submit(
        custom_job, parent=self.parent, client=self._client
    )
    print(f'{created.name}\n{_submit.console_url(created)}')
    return created.name


def _slice_of(job: xm.Job, machine_type: str | None) -> _machines.Slice:
  executor_: Any = job.executor
  requirements = executor_.requirements
  chip = str(requirements.accelerator).lower().removeprefix('tpu_')
  chip = {name: ours for ours, name in _XM_CHIPS.items()}.get(chip, chip)
  return _machines.slice_of(
      f'{chip}:{requirements.topology and requirements.topology.name}',
      machine_type=machine_type,
  )
