"""What may not become a folder, before anything is written.

In buckets: `in_buckets_test.py`.
"""

import pathlib

from etils import epath
import pytest

from gemma4_lora.host import _live_owner
from gemma4_lora.host.folders import _in_the_way
from gemma4_lora.host.folders import _new_folder


def _check(path):
  return _new_folder.check_free(path, overwrite=True, who='save')


def test_a_file_above(tmp_path):
  (tmp_path / 'file').touch()
  for path in (tmp_path / 'file' / 'a' / 'b', tmp_path / 'file'):
    with pytest.raises(FileExistsError, match='/file is a file. Give another'):
      _check(path)
  assert _check(tmp_path / 'not' / 'there')


class _Unreachable(pathlib.PurePosixPath):
  """A path that nobody answers for; `text` is what TensorFlow would say."""

  text = 'All 10 retry attempts failed. The last failure: cURL error 7'

  def exists(self):
    error = type('AbortedError', (Exception,), {'__module__': 'tensorflow'})
    raise error(self.text)


class _Forbidden(_Unreachable):
  text = '403: storage.objects.get denied'


@pytest.mark.parametrize(
    'check', [_in_the_way.check_bucket, _in_the_way.check_no_file]
)
def test_without_a_network_it_is_asked_once(check):
  """What may not be read may be written: then, writing says what is wrong."""
  with pytest.raises(ConnectionError, match='train: .*cannot be reached'):
    check(_Unreachable('/bucket/a/run'), who='train')
  check(_Forbidden('/bucket/a/run'), who='train')


@pytest.fixture(name='run')
def _run(tmp_path):
  (tmp_path / 'runs' / 'run' / 'checkpoints' / 'ckpt_3').mkdir(parents=True)
  return tmp_path / 'runs' / 'run'


def test_a_run_is_not_replaced(run):
  for path in (run, run.parent):
    with pytest.raises(
        FileExistsError, match='/run is the workdir of a run, w'
    ):
      _check(path)
  for path in ('checkpoints', 'checkpoints/x', 'checkpoints/ckpt_3/x'):
    with pytest.raises(FileExistsError, match='among the checkpoints.*/run. G'):
      _check(run / path)
  # Beside its checkpoints, and where only the name is the same.
  assert _check(run / 'lora')
  (run.parent.parent / 'checkpoints' / 'lora').mkdir(parents=True)
  assert _check(run.parent.parent / 'checkpoints' / 'lora')


def test_who_trains_there_is_named(tmp_path):
  """Also before its first checkpoint."""
  taken = _live_owner.Ownership.take(
      epath.Path(tmp_path) / _in_the_way.OWNER, patience_seconds=0
  )
  with pytest.raises(
      FileExistsError, match=r'in which process \d+ on .* trains'
  ):
    _check(tmp_path)
  taken.release()
  assert _check(tmp_path)


def test_names_in_a_bucket_have_room_for_those_of_files():
  path = epath.Path('gs://bucket') / ('ä' * 412)
  _in_the_way.check_length(path, who='save')
  with pytest.raises(ValueError, match='825 bytes below .* shorter path'):
    _in_the_way.check_length(epath.Path(f'{path}x'), who='save')
  _in_the_way.check_length(epath.Path('/tmp/' + 'x/' * 900), who='save')
