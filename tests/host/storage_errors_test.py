"""Errors of buckets become one line that says what to do."""

import builtins

import pytest

from gemma4_lora.host import _storage_errors

_PATH = 'gs://bucket/folder'


def _of(package, name='Error'):
  """An error of another package."""
  return type(name, (Exception,), {'__module__': f'{package}.errors'})


@pytest.mark.parametrize(
    ('error', 'kind', 'text'),
    [
        (
            _of('tensorflow')('HTTP response code 401 with body Anonymous'),
            PermissionError,
            'no credentials for gs://. Log in: gcloud auth application-default',
        ),
        (
            _of('google', 'DefaultCredentialsError')('x'),
            PermissionError,
            'GOOGLE_APPLICATION_CREDENTIALS',
        ),
        (
            ValueError('PERMISSION_DENIED: Error reading "gs://bucket/x"'),
            PermissionError,
            'your account may not read there. Ask who owns gs://bucket for'
            ' roles/storage.objectViewer',
        ),
        (
            _of('gcsfs')('The specified bucket does not exist'),
            FileNotFoundError,
            'there is no bucket gs://bucket. .*gcloud storage buckets create',
        ),
        (
            ValueError("UNAVAILABLE: CURL error Couldn't resolve host"),
            ConnectionError,
            'cannot be reached, or the connection broke: UNAVAILABLE',
        ),
        (ConnectionResetError(104, 'reset'), ConnectionError, 'Try again'),
        (
            # huggingface_hub 2.
            _of('httpx2', 'ConnectError')('Name or service not known'),
            ConnectionError,
            'cannot be reached, or the connection broke: Name',
        ),
        (
            _of('tensorflow')('{{node x}} All 10 retry attempts failed.'),
            ConnectionError,
            'the connection broke: All 10 retry attempts failed',
        ),
        (
            _of('aiohttp')('429, message=Too many'),
            ConnectionError,
            'refuses so many requests',
        ),
        (
            _of('tensorflow', 'NotFoundError')('Object gs://bucket/x'),
            FileNotFoundError,
            'it is not there',
        ),
    ],
)
def test_errors_of_a_bucket(error, kind, text):
  with pytest.raises(kind, match=f'^load: {_PATH}: .*{text}') as e:
    with _storage_errors.explained(_PATH, who='load'):
      raise error
  assert '\n' not in str(e.value)
  assert e.value.__cause__ is error


def test_a_write_meets_no_missing_object():
  error = _of('tensorflow', 'NotFoundError')('HTTP response code 404')
  with pytest.raises(FileNotFoundError, match='there is no bucket gs://bucket'):
    with _storage_errors.explained(_PATH, who='save', doing='write'):
      raise error


def test_other_buckets_have_other_credentials():
  error = _of('botocore', 'NoCredentialsError')('Unable to locate credentials')
  explained = _storage_errors.explain(error, 's3://bucket/x')
  assert 's3://. Log in: aws configure' in str(explained)


@pytest.mark.parametrize(
    'error',
    [
        ValueError('rank=403 is not a rank'),
        FileExistsError('gs://bucket/x exists'),
        FileNotFoundError('no checkpoint at gs://bucket/x'),
        _of('jaxlib')('RESOURCE_EXHAUSTED: Out of memory'),
        KeyError('403'),
    ],
)
def test_other_errors_pass(error):
  with pytest.raises(type(error)) as e:
    with _storage_errors.explained(_PATH, who='load'):
      raise error
  assert e.value is error
  assert _storage_errors.explain(error) is None


def test_errors_of_local_paths_pass():
  with pytest.raises(ConnectionError, match='^x$'):
    with _storage_errors.explained('/a', who='load'):
      raise ConnectionError('x')


def test_without_a_path_only_what_is_surely_of_a_bucket():
  explain = _storage_errors.explain
  assert explain(_of('google')('403 on aiplatform')) is None
  assert explain(builtins.ConnectionError('403')) is None
  found = explain(_of('tensorflow')('403 when reading gs://b/x, again'))
  assert str(found).startswith('gs://b/x: your account may not read there.')
