"""The XManager launcher, through XManager's own local experiments."""

import os
import pathlib
import subprocess
import sysconfig

import pytest
from xmanager import xm
from xmanager import xm_local
from xmanager.xm_local import executables

from gemma4_lora.jobs import _machines
from gemma4_lora.jobs import _request
from gemma4_lora.jobs import _xm_client
from gemma4_lora.jobs import _yaml
from tests.lib import jobs

_ROOT = pathlib.Path(__file__).parent.parent.parent
_OVERRIDE = "--cfg.model.targets=['q', 'v']"


def test_launch(tmp_path):
  """As a shell does; the work unit reaches the client, which prints the job."""
  done = subprocess.run(
      [
          pathlib.Path(sysconfig.get_path('scripts')) / 'xmanager',
          *('launch', 'gemma4_lora/jobs/xm_launch.py', '--'),
          *('--cfg=configs/quickstart.py', _OVERRIDE, '--topology=v6e:4x4'),
          *('--region=us-east5', '--workdir=gs://bucket/run'),
          *('--project=my-project', '--dry-run', '--noplan'),
      ],
      cwd=_ROOT,
      # Where XManager keeps its records.
      env=os.environ | {'HOME': str(tmp_path), 'PYTHONPATH': str(_ROOT)},
      capture_output=True,
      text=True,
      check=False,
  )
  assert done.returncode == 0, done.stderr
  assert 'oneDNN' not in done.stderr  # TensorFlow's: see `quiet`.
  config = _request.Config(path='configs/quickstart.py', overrides=(_OVERRIDE,))
  want = jobs.request_of(topology='v6e:4x4', config=config).job().job_spec
  text = done.stdout[: done.stdout.index('strategy: STANDARD\n') + 19]
  assert _yaml.from_yaml(text) == want
  assert (tmp_path / '.xmanager' / 'experiments.sqlite3').exists()


def _job(requirements, args=()):
  return xm.Job(
      executables.GoogleContainerRegistryImage(
          name='train', image_path='us-docker.pkg.dev/p/r/i:1'
      ),
      executor=xm_local.Vertex(requirements),
      args=list(args),
  )


@pytest.mark.parametrize(
    ('topology', 'resource'),
    [
        ('v6e:1x1', 'TPU_V6E'),
        ('v6e:4x4', 'TPU_V6E'),
        ('v5e:2x2', 'TPU_V5E'),
        ('v5p:2x2x1', 'TPU_V5P'),
        ('tpu7x:2x2x1', 'TPU_V7X'),
    ],
)
def test_requirements_of_an_executor(topology, resource, vertex):
  """The chips that XManager's own client raises KeyError for."""
  server, client = vertex
  tpu = _machines.slice_of(topology)
  request = jobs.request_of(topology=topology)
  made = _xm_client.VertexClient(request, client)
  requirements = _xm_client.executor(tpu).requirements
  assert str(requirements.accelerator) == resource
  name = made.launch('a_name', [_job(requirements, [_OVERRIDE, '--x=a"b'])])
  assert name == 'projects/my-project/locations/us-east5/customJobs/17'
  job = server.requests[0].custom_job
  assert job.display_name == 'a_name'
  (pool,) = job.job_spec.worker_pool_specs
  assert pool.machine_spec.tpu_topology == tpu.shape
  assert pool.machine_spec.machine_type == tpu.machine_type
  # As they are, not quoted for a shell.
  assert list(pool.container_spec.args) == [_OVERRIDE, '--x=a"b']
  assert pool.container_spec.image_uri == 'us-docker.pkg.dev/p/r/i:1'


def test_what_xmanager_has_no_word_for(vertex):
  server, client = vertex
  changes = {'topology': 'v6e:2x4', 'machine_type': 'ct6e-standard-4t'}
  request = jobs.request_of(**changes, service_account='me@my-project')
  made = _xm_client.VertexClient(request, client)
  made.launch('x', [_job(xm.JobRequirements(tpu_v6e='2x4'))])
  spec = server.requests[0].custom_job.job_spec
  machine = spec.worker_pool_specs[0].machine_spec
  assert machine.machine_type == 'ct6e-standard-4t'
  assert spec.service_account == 'me@my-project'


def test_chips_that_vertex_has_not():
  client = _xm_client.VertexClient(jobs.request_of())
  with pytest.raises(ValueError, match='no such chip'):
    client.launch('x', [_job(xm.JobRequirements(tpu_v4='2x2x1'))])
  with pytest.raises(ValueError, match='no such chip'):
    client.launch('x', [_job(xm.JobRequirements(cpu=1))])


def test_a_group_of_jobs():
  client = _xm_client.VertexClient(jobs.request_of())
  group = [_job(xm.JobRequirements(tpu_v6e='1x1'))] * 2
  with pytest.raises(ValueError, match='one job .* Got: 2 jobs'):
    client.launch('x', group)
