"""A user's request, and its job."""

from __future__ import annotations

import dataclasses
import pathlib
import typing

from gemma4_lora.jobs import _job
from gemma4_lora.jobs import _machines
from gemma4_lora.jobs.command_line import _allowed

if typing.TYPE_CHECKING:
  from google.cloud.aiplatform_v1 import types

_NO_PROJECT = 'PROJECT_ID'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """A config as a command line names it.

  Attributes:
    path: The file's path, as it is given: `configs/quickstart.py`.
    overrides: Flags that change it, `--cfg.seed=1`.

  Raises:
    ValueError: The path or an override cannot stand in a job.
  """

  path: str
  overrides: tuple[str, ...] = ()

  def __post_init__(self) -> None:
    _allowed.CONFIG.check(self.path)
    # Links may lead to other names.
    _allowed.CONFIG.check(self.path_in_image)
    for override in self.overrides:
      _allowed.check_override(override)

  @property
  def path_in_image(self) -> str:
    """The same path, from the folder where the command was run."""
    path, *parameter = self.path.split(':', 1)
    here = pathlib.Path.cwd()
    absolute = (here / path).resolve()
    if absolute.is_relative_to(here.resolve()):
      path = absolute.relative_to(here.resolve()).as_posix()
    return ':'.join([path, *parameter])

  @property
  def stem(self) -> str:
    return pathlib.PurePath(self.path.split(':', 1)[0]).stem

  @property
  def notes(self) -> list[str]:
    if not self.path_in_image.startswith('/'):
      return []
    return [f'the image must have the config at {self.path_in_image}']


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """A user's request; fields are flags, checked in `__post_init__`.

  Raises:
    ValueError: No job can be made of it; says which flag to change.
  """

  config: Config
  topology: str
  region: str | None
  workdir: str | None
  project: str | None = None
  image: str | None = None
  machine_type: str | None = None
  name: str | None = None
  spot: bool = False
  service_account: str | None = None
  dry_run: bool = False

  def __post_init__(self) -> None:
    _job.check_region(self.region)
    _job.check_workdir(self.workdir)
    if not self.project and not self.dry_run:
      raise ValueError(
          '--project=... is missing: of Google Cloud, where the job runs'
          ' (--dry_run does without).'
      )
    for field, value in (
        (_allowed.PROJECT, self.project),
        (_allowed.IMAGE, self.image),
        (_allowed.JOB_NAME, self.job_name),
        (_allowed.SERVICE_ACCOUNT, self.service_account),
    ):
      if value is not None:
        field.check(value)

  @property
  def tpu(self) -> _machines.Slice:
    return _machines.slice_of(self.topology, machine_type=self.machine_type)

  @property
  def parent(self) -> str:
    """Where Vertex AI keeps the job."""
    return f'projects/{self.project or _NO_PROJECT}/locations/{self.region}'

  @property
  def job_name(self) -> str:
    return self.config.stem if self.name is None else self.name

  @property
  def image_uri(self) -> str:
    if self.image is not None:
      return self.image
    # Old projects have a domain in front: `example.com:my-project`.
    project = (self.project or _NO_PROJECT).replace(':', '/')
    return f'{self.region}-docker.pkg.dev/{project}/gemma4-lora/train:latest'

  @property
  def args(self) -> list[str]:
    """Arguments of the command in the container."""
    return [
        f'--cfg={self.config.path_in_image}',
        f'--cfg.workdir={_job.check_workdir(self.workdir)}',
        *self.config.overrides,
    ]

  @property
  def notes(self) -> list[str]:
    """What the user should know before submitting."""
    notes = list(self.config.notes)
    if not self.tpu.is_listed:
      notes.append(
          f"Vertex AI's page of machines for training has no {self.tpu.chip},"
          ' only that of GKE: it may refuse the job'
      )
    if not self.project and self.image is None:
      notes.append(
          f'--project is missing: {_NO_PROJECT} stands for it in the name of'
          ' the image'
      )
    return notes

  def job(self) -> types.CustomJob:
    """Returns the job for Vertex AI."""
    return _job.custom_job(
        name=self.job_name,
        tpu=self.tpu,
        image=self.image_uri,
        args=self.args,
        spot=self.spot,
        service_account=self.service_account,
    )
