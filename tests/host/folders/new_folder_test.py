"""Folders of this machine: whole or absent, and no leftovers of the dead."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from gemma4_lora.host.folders import _new_folder

_SAVE = """
import sys
from gemma4_lora.host.folders import _new_folder
path = _new_folder.check_free(sys.argv[1], overwrite=True, who='save')
with _new_folder.new_folder(path, overwrite=True, who='save') as folder:
  (folder / 'file').write_text('new')
  print('at work', flush=True)
  input()
"""


def _save(path, text='x', **kwargs):
  kwargs = {'overwrite': False, 'who': 'save'} | kwargs
  where = _new_folder.check_free(path, **kwargs)
  with _new_folder.new_folder(where, **kwargs) as folder:
    (folder / 'file').write_text(text)


def _names(folder):
  return sorted(os.listdir(folder))


@pytest.fixture(name='writer')
def _writer(tmp_path):
  """A process that is writing `tmp_path / 'x'`."""
  process = subprocess.Popen(
      [sys.executable, '-c', _SAVE, tmp_path / 'x'], stdin=-1, stdout=-1
  )
  assert process.stdout.readline()
  yield process
  process.communicate()


def test_what_a_killed_process_left_goes_with_the_next_start(tmp_path, writer):
  """While it lives it is left alone, by whoever writes beside it, too."""
  _save(tmp_path / 'x', 'old')
  assert len(_names(tmp_path)) == 2
  _save(tmp_path / 'y')
  assert len(_names(tmp_path)) == 3
  writer.send_signal(signal.SIGKILL)
  writer.wait()
  assert len(_names(tmp_path)) == 3
  _new_folder.check_free(tmp_path / 'z', overwrite=False, who='save')
  assert _names(tmp_path) == ['x', 'y']
  assert (tmp_path / 'x' / 'file').read_text() == 'old'


def test_an_empty_one_is_of_a_writer_that_died_at_once(tmp_path):
  """Between making the folder and its file, or between removing them."""
  for token in ('0123abcd', '4567abcd'):
    (tmp_path / f'.x.{token}.tmp').mkdir()
  (tmp_path / '.x.4567abcd.tmp' / 'writer.json').touch()
  (tmp_path / '.y.0123abcd.tmp').mkdir()  # Whose it is only `y` knows.
  _save(tmp_path / 'x')
  assert _names(tmp_path) == ['.y.0123abcd.tmp', 'x']


def test_a_live_one_ends_its_work(tmp_path, writer):
  _save(tmp_path / 'y')
  writer.communicate(b'\n')
  assert _names(tmp_path) == ['x', 'y']
  assert (tmp_path / 'x' / 'file').read_text() == 'new'


def test_leftovers_of_earlier_versions_go_when_they_are_old(tmp_path):
  """They do not say whose they are. Folders of others are not touched."""
  for name in ('.x.0123abcd.tmp', '.y.0123abcd.tmp', '.x.tmp'):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'file').touch()
  _save(tmp_path / 'x')
  assert len(_names(tmp_path)) == 4
  hours_ago = time.time() - 7200
  for path in tmp_path.rglob('*'):
    os.utime(path, (hours_ago, hours_ago))
  _save(tmp_path / 'x', overwrite=True)
  assert _names(tmp_path) == ['.x.tmp', '.y.0123abcd.tmp', 'x']


def test_a_swap_that_was_interrupted_is_undone(tmp_path):
  """Where the system has no swap, there is a moment without the old folder."""
  place = tmp_path / '.x.0123abcd.tmp'
  (place / 'old').mkdir(parents=True)
  (place / 'old' / 'file').write_text('old')
  dead = {'machine': 'another', 'pid': 1}
  (place / 'writer.json').write_text(json.dumps(dead))
  os.utime(place / 'writer.json', (0, 0))
  with pytest.raises(FileExistsError, match='x exists'):
    _new_folder.check_free(tmp_path / 'x', overwrite=False, who='save')
  assert (tmp_path / 'x' / 'file').read_text() == 'old'
  assert _names(tmp_path) == ['x']


@pytest.mark.parametrize('given', ['gs:/b/x', pathlib.Path('s3://b/x')])
def test_what_looks_like_a_url_is_no_folder(given, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match="save: .* Give '(gs|s3)://b/x'"):
    _save(given)
  assert _names(tmp_path) == []


def test_a_folder_in_which_orbax_would_find_nothing(tmp_path):
  options = {'overwrite': False, 'who': 'save'}
  _new_folder.check_free(tmp_path / 'a[1]', **options)
  with pytest.raises(ValueError, match=r"a\[1\] has a '\['.* restored"):
    _new_folder.check_free(tmp_path / 'a[1]', by_orbax=True, **options)
