"""Submitting, to a server of this API on this machine."""

import pytest

from gemma4_lora.jobs import _submit
from tests.lib import jobs

_PARENT = 'projects/my-project/locations/us-east5'


def test_a_job(vertex):
  handler, client = vertex
  job = jobs.request_of(topology='v6e:4x4').job()
  created = _submit.submit(job, parent=_PARENT, client=client)
  (request,) = handler.requests
  assert request.parent == _PARENT
  assert request.custom_job.job_spec == job.job_spec
  assert created.name == f'{_PARENT}/customJobs/17'
  url = _submit.console_url(created)
  assert url.endswith('/us-east5/customJobs/17?project=my-project')


def test_a_job_that_is_refused(vertex):
  _, client = vertex
  job = jobs.request_of(name='no-quota').job()
  with pytest.raises(ValueError, match='does not take the job.*no chips left'):
    _submit.submit(job, parent=_PARENT, client=client)


def test_without_credentials(monkeypatch, tmp_path):
  monkeypatch.setenv('GOOGLE_APPLICATION_CREDENTIALS', str(tmp_path / 'none'))
  with pytest.raises(ValueError, match='without credentials: gcloud auth'):
    _submit.submit(jobs.request_of().job(), parent=_PARENT)
