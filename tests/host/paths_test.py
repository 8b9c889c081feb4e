"""What a user's path is: decided in one place, and never a folder `gs:`."""

import os
import pathlib

from etils import epath
import pytest

from gemma4_lora import host
from gemma4_lora.host import _paths


@pytest.mark.parametrize(
    'given',
    ['/a/b', 'a/b', '.', '~/a', 'a:b', 'C:/a', '/a/x:/y', 'gs/b'],
)
def test_local_path_stays_as_given(given):
  assert os.fspath(host.path(given)) == given
  assert host.is_local(host.path(given))
  assert isinstance(host.path(given), epath.Path)


@pytest.mark.parametrize(
    ('given', 'text'),
    [
        ('gs://bucket', 'gs://bucket'),
        ('gs://bucket/a/', 'gs://bucket/a'),
        ('gs://bucket//a/./b', 'gs://bucket/a/b'),
        ('gs://bucket/a/../b', 'gs://bucket/b'),
        (epath.Path('gs://bucket/a'), 'gs://bucket/a'),
        ('hf://datasets/google/x', 'hf://datasets/google/x'),
    ],
)
def test_path_in_a_bucket(given, text):
  path = host.path(given)
  assert os.fspath(path) == str(path) == text
  assert not host.is_local(path)
  assert os.fspath(path / 'x') == f'{text}/x'
  assert not host.is_local(path / 'x')


def test_fsspec_reads_what_tensorflow_does_not():
  # Children too: each is made anew.
  path = host.path('hf://org/repo') / 'x'
  assert 'FileSystemSpec' in type(path.parent._backend).__name__  # pylint: disable=protected-access


@pytest.mark.parametrize(
    ('given', 'instead'),
    [
        (pathlib.Path('gs://bucket/a'), 'gs://bucket/a'),
        ('gs:/bucket/a', 'gs://bucket/a'),
        ('s3:/bucket/a', 's3://bucket/a'),
        ('gs:bucket/a', 'gs://bucket/a'),
        ('GS://bucket/a', 'gs://bucket/a'),
        (' gs://bucket/a', 'gs://bucket/a'),
        ('"gs://bucket/a"', 'gs://bucket/a'),
        ('gs:\\\\bucket\\a', 'gs://bucket/a'),
        ('gcs://bucket/a', 'gs://bucket/a'),
        ('s3a://bucket/a', 's3://bucket/a'),
        (os.path.abspath('gs://bucket/a'), 'gs://bucket/a'),
        ('./gs:/bucket/a', 'gs://bucket/a'),
        (os.path.abspath('GS://bucket/a'), 'gs://bucket/a'),
        (os.path.abspath('gcs://bucket/a'), 'gs://bucket/a'),
        ('https://storage.googleapis.com/bucket/a', 'gs://bucket/a'),
        ('https://huggingface.co/org/repo', 'hf://org/repo'),
        ('file:///a/b', '/a/b'),
    ],
)
def test_what_looks_like_a_url_is_told_its_spelling(given, instead):
  with pytest.raises(ValueError, match=f"[Gg]ive .*'{instead}'") as e:
    host.path(given, who='save')
  assert str(e.value).startswith('save: ')
  assert '\n' not in str(e.value)


@pytest.mark.parametrize(
    'given', ['http://host/a', 'ftp://host/a', 'x-y:/a', 'memory://a']
)
def test_other_schemes_are_refused(given):
  with pytest.raises(ValueError, match='give a local path, or .* gs://') as e:
    host.path(given)
  assert '\n' not in str(e.value)


@pytest.mark.parametrize('name', ['a b', 'b?x', 'Bucket', 'bücket', '-b'])
def test_a_bucket_has_a_name_that_there_can_be(name):
  with pytest.raises(ValueError, match='save: .* is no name of a bucket') as e:
    host.path(f'gs://{name}/a b?c', who='save')
  assert repr(name) in str(e.value)
  host.path('gs://my_bucket-1.example.com/a b?c')


@pytest.mark.parametrize('given', ['gs://', 'gs:///a', 'gs://..', 'gs://.'])
def test_a_bucket_must_be_named(given):
  with pytest.raises(ValueError, match='no bucket. Give gs://bucket/folder'):
    host.path(given)


@pytest.mark.parametrize(
    'given',
    ['gs:', pathlib.Path('gs://'), './gs://b/a', '/x/gs://b', '`gs://b'],
)
def test_half_a_url_is_neither(given):
  with pytest.raises(
      ValueError, match='save: .* neither a local path nor'
  ) as e:
    host.path(given, who='save')
  assert '\n' not in str(e.value)


def test_orbax_takes_brackets_for_a_pattern():
  _paths.check_orbax_can_write('/a/b*?', who='save')
  for path in ('/a/run[1]', 'gs://b/run[1]', 'gs://b/run\\1'):
    with pytest.raises(ValueError, match='save: .* has a .*for a pattern') as e:
      _paths.check_orbax_can_write(path, who='save')
    assert path in str(e.value)


@pytest.mark.parametrize('name', ['a#b', 'a?b', 'a/b?c/d'])
def test_orbax_ends_a_url_at_what_may_end_one(name):
  for check in (_paths.check_orbax_can_read, _paths.check_orbax_can_write):
    check(f'/tmp/{name}', who='save')
    with pytest.raises(ValueError, match=f'save: gs://b/{name[:1]}.*elsewhere'):
      check(f'gs://b/{name}', who='save')


def test_tensorstore_takes_a_backslash_for_a_slash():
  for check in (_paths.check_orbax_can_read, _paths.check_orbax_can_write):
    with pytest.raises(ValueError, match='save: /a.* a backslash.*elsewhere'):
      check('/a\\b/c', who='save')


@pytest.mark.parametrize('name', ['a\nb', 'a\rb', 'a\tb', 'a\x7fb'])
def test_names_in_a_bucket_are_one_line(name):
  with pytest.raises(ValueError, match='save: .* control character') as e:
    host.path(f'gs://bucket/{name}', who='save')
  assert '\n' not in str(e.value)
  host.path('gs://bucket/ünï çødé')


def test_dots_do_not_lead_out_of_a_bucket():
  with pytest.raises(ValueError, match='leads out of its bucket'):
    host.path('gs://bucket/a/../../other/b')


def test_says_what_to_install():
  for scheme, package in (('s3', 's3fs'), ('az', 'adlfs')):
    with pytest.raises(
        ModuleNotFoundError, match=f'pip install {package}'
    ) as e:
      host.path(f'{scheme}://bucket/a')
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('given', [None, 3, b'gs://bucket/a'])
def test_what_is_no_path(given):
  with pytest.raises(TypeError, match='a path is a string'):
    host.path(given)
