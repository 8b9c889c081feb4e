"""What says that a folder is whole: here of folders that were copied."""

import pathlib
import zlib

from etils import epath
import pytest

from gemma4_lora.host.folders import _commit
from gemma4_lora.host.folders import _owner

_COMMIT = _commit.COMMIT


@pytest.fixture(name='folder')
def _folder(tmp_path):
  folder = epath.Path(tmp_path / 'x')
  folder.mkdir()
  for name in 'ab':
    (folder / name).write_text(name)
  files = {name: (1, zlib.crc32(name.encode())) for name in 'ab'}
  _write(folder, 'complete', files=files)
  return folder


def _write(folder, state, **kwargs):
  writer = _owner.make() | {'pid': 12}
  _commit.write(folder, _commit.Commit(state=state, writer=writer, **kwargs))


def _read(folder):
  return _commit.read_files(folder, ('a', 'b'), who='load')


def test_whole_folder(folder):
  assert _commit.whole(folder, who='load') == folder
  assert _read(folder) == {'a': b'a', 'b': b'b'}
  (folder / 'README').touch()  # Other files may come.
  assert _read(folder)


def test_folder_of_others(folder):
  (folder / _COMMIT).unlink()
  (folder / 'b').write_text('longer')
  assert _read(folder)['b'] == b'longer'
  assert _commit.whole(folder / 'none', who='load') == folder / 'none'
  assert _commit.whole(folder / 'a', who='load') == folder / 'a'


def test_interrupted_write(folder):
  _write(folder, 'writing')
  for call in (_commit.whole, lambda x, who: _read(x)):
    with pytest.raises(ValueError, match='interrupted write: process 12 on'):
      call(folder, who='load')


@pytest.mark.parametrize(
    ('damage', 'match'),
    [
        (lambda x: x.unlink(), 'b is missing, and .* says 1'),
        (lambda x: x.write_text(''), 'b has 0 bytes, and .* says 1'),
        (lambda x: x.write_text('c'), 'b is not as it was written: its check'),
    ],
)
def test_damaged_folder(folder, damage, match):
  damage(pathlib.Path(folder / 'b'))
  with pytest.raises(ValueError, match=match) as e:
    _read(folder)
  assert f'remove {_COMMIT}' in str(e.value)


def test_replacement_that_is_not_copied_yet(folder):
  new = folder.parent / '.x.0123abcd.tmp'
  folder.rename(new)
  folder.mkdir()
  (folder / 'a').write_text('half')
  _write(folder, 'moving', source=new.name)
  assert _commit.whole(folder, who='load') == new
  assert _read(folder) == {'a': b'a', 'b': b'b'}
  new.rmtree()
  with pytest.raises(ValueError, match='x is an interrupted write'):
    _read(folder)


def test_a_size_that_is_no_number_of_bytes(folder):
  said = (folder / _COMMIT).read_text()
  (folder / _COMMIT).write_text(
      said.replace('"b": [\n   1', '"b": [\n   1e999')
  )
  assert '1e999' in (folder / _COMMIT).read_text()
  with pytest.raises(ValueError, match=f'{_COMMIT} cannot be read: .*infinity'):
    _read(folder)


@pytest.mark.parametrize('text', ['{', '[]', '{"format": 2}'])
def test_what_cannot_be_read(folder, text):
  (folder / _COMMIT).write_text(text)
  with pytest.raises(ValueError, match=f'{_COMMIT} cannot be read: '):
    _read(folder)
