"""Jobs, and the text of them, against the API's own types."""

import sys

from google.cloud.aiplatform_v1 import types
import pytest
import yaml

from gemma4_lora.jobs import _request
from gemma4_lora.jobs import _yaml
from tests.lib import jobs


@pytest.mark.parametrize(
    ('topology', 'machine_type', 'shape'),
    [
        ('v6e:1x1', 'ct6e-standard-1t', '1x1'),
        ('v6e:4x4', 'ct6e-standard-4t', '4x4'),
        ('v5p:2x2x2', 'ct5p-hightpu-4t', '2x2x2'),
        ('tpu7x:2x2x1', 'tpu7x-standard-4t', '2x2x1'),
    ],
)
def test_what_gcloud_reads(topology, machine_type, shape):
  """A slice is one replica, of however many hosts; numbers are numbers."""
  overrides = ("--cfg.model.targets=['q', 'v']", '--cfg.seed=1')
  config = _request.Config(path='configs/quickstart.py', overrides=overrides)
  spec = jobs.request_of(topology=topology, config=config).job().job_spec
  text = _yaml.to_yaml(spec)
  tree = yaml.safe_load(text)
  assert tree == {
      'workerPoolSpecs': [
          {
              'machineSpec': {
                  'machineType': machine_type,
                  'tpuTopology': shape,
              },
              'replicaCount': 1,
              'containerSpec': {
                  'imageUri': (
                      'us-east5-docker.pkg.dev/my-project/gemma4-lora/train'
                      ':latest'
                  ),
                  'command': ['python', '-m', 'gemma4_lora', 'train'],
                  'args': [
                      '--cfg=configs/quickstart.py',
                      '--cfg.workdir=gs://bucket/run',
                      *overrides,
                  ],
                  'env': [
                      {'name': 'JAX_PLATFORMS', 'value': 'tpu,cpu'},
                      {'name': 'PYTHONUNBUFFERED', 'value': '1'},
                  ],
              },
          }
      ],
      'scheduling': {
          'restartJobOnWorkerRestart': True,
          'strategy': 'STANDARD',
      },
  }
  assert _yaml.from_yaml(text) == spec
  assert isinstance(spec, types.CustomJobSpec)


@pytest.mark.parametrize(
    ('text', 'says'),
    [
        ('workerPoolSpec: []', 'has no field named "workerPoolSpec"'),
        ('workerPoolSpecs:\n- replicaCount: many', 'parse replicaCount'),
        ('scheduling:\n  strategy: CHEAP', 'CHEAP'),
    ],
)
def test_text_that_is_no_job(text, says):
  with pytest.raises(ValueError, match=f'Not a CustomJobSpec.*{says}'):
    _yaml.from_yaml(text)


def test_text_that_is_another_job(monkeypatch):
  spec = jobs.request_of().job().job_spec
  monkeypatch.setattr(_yaml, 'from_yaml', lambda _: types.CustomJobSpec())
  with pytest.raises(ValueError, match='YAML cannot hold this job'):
    _yaml.to_yaml(spec)


def test_spot():
  request = jobs.request_of(spot=True, service_account='me@my-project')
  spec = request.job().job_spec
  assert spec.scheduling.strategy == types.Scheduling.Strategy.SPOT
  assert spec.scheduling.restart_job_on_worker_restart
  assert spec.service_account == 'me@my-project'
  # One host of eight chips is no pod.
  assert jobs.request_of(spot=True, topology='v6e:2x4').job()
  for changes in (
      {'topology': 'v6e:4x4'},
      {'topology': 'v6e:2x4', 'machine_type': 'ct6e-standard-4t'},
  ):
    with pytest.raises(ValueError, match='--spot .* hosts .*Leave --spot out'):
      jobs.request_of(spot=True, **changes).job()


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        ({'region': None}, '--region=... is missing: .*us-east5'),
        ({'region': 'us-east5-b'}, 'is a zone. Its region is us-east5'),
        ({'region': 'US'}, '--region=US is not a region'),
        ({'workdir': None}, '--workdir=gs://... is missing'),
        ({'workdir': '/tmp/run'}, '--workdir=/tmp/run is not in Cloud Storage'),
        ({'workdir': 'gs://'}, '--workdir=gs:// is not a folder in Cloud'),
        ({'project': None}, '--project=... is missing'),
    ],
)
def test_what_is_missing_or_wrong(changes, says):
  with pytest.raises(ValueError, match=says):
    jobs.request_of(**changes)


@pytest.mark.parametrize(
    'image',
    [
        'python:3.12',
        'us-docker.pkg.dev/p/r/i@sha256:0123456789abcdef',
        'localhost:5000/i:v1.2',
    ],
)
def test_images(image):
  pools = jobs.request_of(image=image).job().job_spec.worker_pool_specs
  assert pools[0].container_spec.image_uri == image


def test_path_of_the_config_in_the_image(tmp_path, monkeypatch):
  """As from here; one from elsewhere has to be there, and a note says so."""
  monkeypatch.chdir(tmp_path)
  inside = _request.Config(path=f'{tmp_path}/configs/a.py:big')
  assert inside.path_in_image == 'configs/a.py:big'
  assert not inside.notes
  assert inside.stem == 'a'
  outside = _request.Config(path='/elsewhere/b.py')
  assert outside.path_in_image == '/elsewhere/b.py'
  assert outside.notes == ['the image must have the config at /elsewhere/b.py']


def test_notes():
  assert not jobs.request_of().notes
  for chip in ('v5p', 'tpu7x'):
    (note,) = jobs.request_of(topology=f'{chip}:2x2x1').notes
    assert f'no {chip}' in note
  (note,) = jobs.request_of(project=None, dry_run=True).notes
  assert 'PROJECT_ID' in note


def test_without_google_cloud_aiplatform(monkeypatch):
  monkeypatch.setitem(sys.modules, 'google.cloud.aiplatform_v1', None)
  with pytest.raises(ValueError, match=r'pip install "gemma4_lora\[vertex\]"'):
    jobs.request_of().job()
