"""Files of rows: what they may be, which are meant, and what is wrong."""

import gzip
import json
import multiprocessing
import os
import pickle
import re
import sys
import tempfile

import pyarrow as pa
from pyarrow import parquet
import pytest
import zstandard

from gemma4_lora import g4
from gemma4_lora.data.layouts import _fields
from gemma4_lora.data.sources import _origins

_ROWS = [{'a': i, 'text': 'é' * i} for i in range(3)]
_LINES = b''.join(json.dumps(row).encode() + b'\n' for row in _ROWS)


def _source(path):
  return g4.data.Files(path=path, shuffle=False).data_source


def _read(path):
  source = _source(path)
  return [source[i] for i in range(len(source))]


def _zstd(data):
  # As the command does: without a checksum nobody could see the damage.
  return zstandard.ZstdCompressor(write_checksum=True).compress(data)


@pytest.mark.parametrize(
    'data',
    [
        gzip.compress(_LINES),
        # Several streams, as `cat a.gz b.gz` makes them.
        gzip.compress(_LINES[:9]) + gzip.compress(_LINES[9:]) + b'\0' * 9,
        _zstd(_LINES),
        _zstd(_LINES[:9]) + _zstd(_LINES[9:]),
        b'\xef\xbb\xbf' + _LINES,
    ],
    ids=['gzip', 'gzip, several', 'zstd', 'zstd, several', 'byte order mark'],
)
def test_lines_may_be_compressed_whatever_the_name(data, tmp_path):
  (tmp_path / 'rows.jsonl').write_bytes(data)
  assert _read(tmp_path / 'rows.jsonl') == _ROWS


@pytest.mark.parametrize('name', ['gzip', 'zstd'])
def test_a_compressed_file_that_is_cut_or_damaged_is_an_error(name, tmp_path):
  path = tmp_path / 'rows.jsonl'
  data = gzip.compress(_LINES) if name == 'gzip' else _zstd(_LINES)
  for damaged in (data[:-3], data[:12] + b'\xff\xff' + data[14:]):
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=f'rows.jsonl is no whole {name} file'):
      len(_source(path))


@pytest.mark.parametrize('suffix', ['gz', 'zst'])
@pytest.mark.parametrize('size', [0, 1, 3])
def test_a_compressed_file_of_hardly_any_bytes_is_an_error(
    suffix, size, tmp_path
):
  path = tmp_path / f'rows.jsonl.{suffix}'
  data = gzip.compress(_LINES) if suffix == 'gz' else _zstd(_LINES)
  path.write_bytes(data[:size])
  with pytest.raises(ValueError, match=f'rows.jsonl.{suffix} is no whole'):
    len(_source(path))


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        (b'BZh91AY', 'compressed by bzip2, which is not read'),
        (b'version https://git-lfs.github.com/spec/v1', 'git lfs pull'),
        (b'PAR1' + b'x' * 40, 'no whole Parquet file'),
    ],
)
def test_what_a_file_is_instead(data, message, tmp_path):
  (tmp_path / 'x').write_bytes(data)
  with pytest.raises(ValueError, match=f'{tmp_path}/x.*{message}'):
    len(_source(tmp_path / 'x'))


def test_rows_of_parquet_are_those_of_its_table(tmp_path):
  """Rows of several groups and batches; a column with a dictionary; nested."""
  rows = [
      {'kind': 'ab'[i % 2], 'messages': [{'role': 'user', 'n': [i, None]}] * 2}
      for i in range(2500)
  ]
  table = pa.Table.from_pylist(rows)
  column = table['kind'].dictionary_encode()
  table = table.set_column(0, 'kind', column)
  path = tmp_path / 'rows.parquet'
  parquet.write_table(table, path, row_group_size=1100)
  source = pickle.loads(pickle.dumps(_source(path)))
  assert len(source) == len(rows)
  for i in (0, 1023, 1024, 1099, 1100, 2499):
    assert source[i] == rows[i]
  parquet.write_table(table[:0], path)
  assert not _read(path)


@pytest.mark.parametrize('compression', ['snappy', 'zstd'])
def test_a_parquet_file_that_is_cut_or_damaged_is_an_error(
    compression, tmp_path
):
  path = tmp_path / 'rows.parquet'
  parquet.write_table(
      pa.Table.from_pylist(_ROWS),
      path,
      compression=compression,
      write_page_checksum=True,
  )
  data = path.read_bytes()
  for damaged in (data[:-9], data[:60] + b'\xff\xff' + data[62:]):
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match='rows.parquet is no whole Parquet'):
      len(_source(path))


def test_a_row_of_parquet_that_is_no_unicode_is_one_that_says_so(tmp_path):
  text = pa.array([b'a', b'\xff']).view(pa.string())
  parquet.write_table(pa.table({'text': text}), tmp_path / 'rows.parquet')
  good, bad = _read(tmp_path / 'rows.parquet')
  assert good == {'text': 'a'}
  assert 'not UTF-8: row 1 of ' in bad.reason


def test_what_to_install_for_parquet(tmp_path, monkeypatch):
  parquet.write_table(pa.Table.from_pylist(_ROWS), tmp_path / 'rows.parquet')
  monkeypatch.setitem(sys.modules, 'pyarrow.parquet', None)
  match = r"rows.parquet is a Parquet .*pip install 'gemma4_lora\[parquet\]'"
  with pytest.raises(ModuleNotFoundError, match=match):
    len(_source(tmp_path / 'rows.parquet'))


def test_files_of_a_list_and_of_patterns_follow_each_other(tmp_path):
  for name, a in (('b-2.jsonl', 2), ('b-1.jsonl', 1), ('c[1].jsonl', 4)):
    (tmp_path / name).write_text(json.dumps({'a': a}))
  (tmp_path / 'b-folder.jsonl').mkdir()
  (tmp_path / 'empty.jsonl').touch()
  parquet.write_table(pa.Table.from_pylist([{'a': 3}]), tmp_path / 'x.parquet')
  names = ['b-*.jsonl', 'empty.jsonl', 'x.parquet', 'c[1].jsonl']
  rows = _read([tmp_path / name for name in names])
  assert [row['a'] for row in rows] == [1, 2, 3, 4]
  assert [row['a'] for row in _read(f'{tmp_path}/**/b-*.jsonl')] == [1, 2]
  with pytest.raises(IndexError, match='no row 4 of 4'):
    _source([tmp_path / name for name in names])[4]


@pytest.mark.parametrize(
    ('paths', 'error', 'message'),
    [
        ([], ValueError, 'an empty list'),
        (['a.jsonl', '[a].jsonl'], ValueError, 'a.jsonl is named twice.*Mix'),
        (['b-*.jsonl'], FileNotFoundError, r'no file matches .*b-\*.jsonl'),
        (['b.jsonl'], FileNotFoundError, 'there is no file .*b.jsonl'),
        (['.'], ValueError, r'is a folder. Name its files: .*/\*.jsonl'),
    ],
)
def test_paths_that_name_no_files(paths, error, message, tmp_path):
  (tmp_path / 'a.jsonl').write_bytes(_LINES)
  with pytest.raises(error, match=message):
    len(_source([tmp_path / x for x in paths]))


def test_lines_that_are_no_objects_are_rows_that_say_where_and_why(tmp_path):
  path = tmp_path / 'x.jsonl'
  deep = b'[' * 100_000
  lines = [b'{}', b'', b'null', deep, b'{"a": "\xff"}', b' ', b'[1]', b'{']
  path.write_bytes(b'\n'.join(lines))
  whole, *broken = _read(path)
  assert whole == {}
  found = [re.match(r'(.*): line (\d) of ', x.reason).groups() for x in broken]
  assert found == [
      ('The line is no JSON object', '3'),
      ('The line is nested too deep', '4'),
      ('The line is not JSON', '5'),
      ('The line is no JSON object', '7'),
      ('The line is not JSON', '8'),
  ]
  assert all(isinstance(x, _fields.Broken) for x in broken)
  assert max(len(x.reason) for x in broken) < 500 + len(os.fspath(path))


def test_the_origin_of_a_row_is_known_until_the_next_is_read(tmp_path):
  (tmp_path / 'a.jsonl').write_bytes(_LINES)
  (tmp_path / 'b.jsonl').write_bytes(b'\n' + _LINES)
  source = _source(f'{tmp_path}/*.jsonl')
  first, row = source[0], source[4]
  assert _origins.of(row) == f'row 4, line 3 of {tmp_path}/b.jsonl'
  assert _origins.of(first) is None
  assert _origins.of(dict(row)) is None


def test_a_malformed_row_is_named_by_its_index_file_and_line(tmp_path):
  (tmp_path / 'a.jsonl').write_bytes(b'\n' + _LINES)
  dataset = g4.data.Files(
      path=tmp_path / 'a.jsonl',
      shuffle=False,
      batch_size=None,
      num_workers=0,
      transforms=[
          g4.data.ChatTask(
              tokenizer=g4.testing.Gemma4Tokenizer(), max_length=16
          )
      ],
  )
  with pytest.raises(KeyError, match=r'prompt.*In row 0, line 2 of .*a.jsonl'):
    next(iter(dataset))


def _read_and_leave(path):
  source = _source(path)
  assert len(source) == 3
  _KEPT.append(source)  # Alive when the process ends.


_KEPT = []


def test_a_copy_goes_with_a_process_that_was_forked(tmp_path, monkeypatch):
  copies = tmp_path / 'copies'
  copies.mkdir()
  monkeypatch.setattr(tempfile, 'tempdir', os.fspath(copies))
  path = tmp_path / 'rows.jsonl.gz'
  path.write_bytes(gzip.compress(_LINES))
  process = multiprocessing.get_context('fork').Process(
      target=_read_and_leave, args=(path,)
  )
  process.start()
  process.join(60)
  assert process.exitcode == 0
  assert not [*copies.iterdir()]


def test_a_copy_is_shared_and_goes_with_the_dataset(tmp_path, monkeypatch):
  copies = tmp_path / 'copies'
  copies.mkdir()
  monkeypatch.setattr(tempfile, 'tempdir', os.fspath(copies))
  path = tmp_path / 'rows.jsonl.gz'
  path.write_bytes(gzip.compress(_LINES))
  source = _source(path)
  assert len(source) == 3
  (copy,) = copies.iterdir()
  other = pickle.loads(pickle.dumps(source))
  assert other[2] == _ROWS[2]
  assert [*copies.iterdir()] == [copy]
  del other
  assert copy.exists()
  del source
  _origins.note(None, index=0, place=str)
  assert not copy.exists()
  # And is made again by a process that finds it gone.
  third = pickle.loads(pickle.dumps(_source(path)))
  assert third[1] == _ROWS[1]
