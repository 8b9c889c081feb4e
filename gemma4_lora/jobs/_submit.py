"""Submits a job to Vertex AI."""

from __future__ import annotations

import typing
from typing import Any

if typing.TYPE_CHECKING:
  from google.cloud.aiplatform_v1 import types


def submit(
    job: types.CustomJob, *, parent: str, client: Any = None
) -> types.CustomJob:
  """Creates the job, and returns it as Vertex AI has it.

  Args:
    job: See `_job.custom_job`.
    parent: `projects/…/locations/…`.
    client: A `JobServiceClient`; default: one for the region, with the
      credentials of the environment.

  Raises:
    ValueError: There are no credentials, or Vertex AI refuses the job.
  """
  from google import auth  # pylint: disable=g-import-not-at-top
  from google.api_core import exceptions  # pylint: disable=g-import-not-at-top
  from google.cloud import aiplatform_v1  # pylint: disable=g-import-not-at-top

  region = parent.rpartition('/')[2]
  try:
    if client is None:
      client = aiplatform_v1.JobServiceClient(
          client_options={'api_endpoint': f'{region}-aiplatform.googleapis.com'}
      )
    return client.create_custom_job(parent=parent, custom_job=job)
  except auth.exceptions.GoogleAuthError as e:
    raise ValueError(
        'Vertex AI takes no job without credentials: gcloud auth'
        f' application-default login ({e}).'
    ) from e
  except exceptions.GoogleAPICallError as e:
    raise ValueError(f'Vertex AI does not take the job ({parent}): {e}') from e


def console_url(created: types.CustomJob) -> str:
  """Returns the page of a job that `submit` returned."""
  _, project, _, region, _, number = created.name.split('/')
  return (
      'https://console.cloud.google.com/vertex-ai/training/locations/'
      f'{region}/customJobs/{number}?project={project}'
  )
