"""Tests of sources: files of all kinds give the same examples."""

import dataclasses
import json
import pickle

from array_record.python import array_record_module
from gemma import gm
import jax
from kauldron import kd
import numpy as np
import pyarrow as pa
from pyarrow import parquet
import pytest
import tensorflow_datasets as tfds

from gemma4_lora import g4

_TASK = g4.data.ChatTask(
    layout='messages',
    tokenizer=g4.testing.Gemma4Tokenizer(),
    max_length=64,
    max_malformed=1,
)
_ROWS = [
    {
        'messages': [
            {'role': 'user', 'content': pair['en']},
            {'role': 'assistant', 'content': pair['fr']},
        ]
    }
    for pair in g4.testing.EnFrPairs(split='test')
]


def _jsonl(path):
  path = path / 'rows.jsonl'
  path.write_text('\n'.join(map(json.dumps, _ROWS)), encoding='utf-8')
  return g4.data.Jsonl(path=path, **_OPTIONS)


def _json(path):
  path = path / 'rows.json'
  path.write_text(json.dumps(_ROWS), encoding='utf-8')
  return kd.data.py.Json(path=str(path), **_OPTIONS)


def _parquet(path):
  path = path / 'rows.parquet'
  parquet.write_table(pa.Table.from_pylist(_ROWS), path)
  return gm.data.Parquet(path=path, **_OPTIONS)


def _tfds(path):
  """Written by hand: what TFDS itself writes with needs a package more."""
  features = tfds.features.FeaturesDict(
      {
          'messages': tfds.features.Sequence(
              {'role': tfds.features.Text(), 'content': tfds.features.Text()}
          )
      }
  )
  folder = path / 'rows' / '1.0.0'
  folder.mkdir(parents=True)
  serializer = tfds.core.example_serializer.ExampleSerializer(
      features.get_serialized_info()
  )
  writer = array_record_module.ArrayRecordWriter(
      str(folder / 'rows-train.array_record-00000-of-00001'), 'group_size:1'
  )
  for row in _ROWS:
    writer.write(serializer.serialize_example(features.encode_example(row)))
  writer.close()
  tfds.folder_dataset.write_metadata(
      data_dir=folder,
      features=features,
      split_infos=[
          tfds.core.SplitInfo(
              name='train',
              shard_lengths=[len(_ROWS)],
              num_bytes=0,
              filename_template=tfds.core.ShardedFileTemplate(
                  data_dir=folder,
                  dataset_name='rows',
                  split='train',
                  filetype_suffix='array_record',
              ),
          )
      ],
      check_data=False,
  )
  return kd.data.py.Tfds('rows', split='train', data_dir=path, **_OPTIONS)


def _huggingface(path):
  pytest.importorskip('datasets')
  _jsonl(path)
  return kd.data.py.HuggingFace(
      'json',
      split='train',
      data_dir=path,
      cache_dir=path / 'cache',
      **_OPTIONS,
  )


_OPTIONS = dict(
    shuffle=False,
    num_epochs=1,
    batch_size=None,
    num_workers=0,
    transforms=[_TASK],
)


@pytest.mark.parametrize('make', [_jsonl, _json, _parquet, _tfds, _huggingface])
def test_files_of_all_kinds_give_the_same_examples(make, tmp_path):
  examples = list(make(tmp_path))
  assert len(examples) == len(_ROWS)
  for example, row in zip(examples, _ROWS, strict=True):
    jax.tree.map(np.testing.assert_array_equal, example, _TASK.map(row))


@pytest.mark.parametrize('make', [_jsonl, _json, _parquet, _tfds])
def test_files_of_all_kinds_can_be_packed(make, tmp_path):
  dataset = dataclasses.replace(make(tmp_path), transforms=[])
  packed = g4.data.PackedSource(data_source=dataset, transforms=[_TASK])
  expected = g4.data.PackedSource(data_source=_ROWS, transforms=[_TASK])
  assert packed.bins == expected.bins
  jax.tree.map(np.testing.assert_array_equal, packed[0], expected[0])


@pytest.mark.parametrize('end', ['', '\n', '\n\n'])
def test_lines_of_jsonl_are_rows_and_empty_ones_are_none(end, tmp_path):
  path = tmp_path / 'rows.jsonl'
  path.write_bytes(b'{"a": 1}\n\n  \r\n{"a": "\xc3\xa9"}' + end.encode())
  source = g4.data.Jsonl(path=path, shuffle=False).data_source
  assert [source[i] for i in range(len(source))] == [{'a': 1}, {'a': 'é'}]
  copy = pickle.loads(pickle.dumps(source))
  assert copy[1] == {'a': 'é'}


def test_an_empty_file_has_no_rows(tmp_path):
  (tmp_path / 'rows.jsonl').touch()
  source = g4.data.Jsonl(
      path=tmp_path / 'rows.jsonl', shuffle=False
  ).data_source
  assert len(source) == 0  # pylint: disable=g-explicit-length-test


def test_a_line_that_is_no_json_is_a_malformed_row(tmp_path):
  path = tmp_path / 'rows.jsonl'
  path.write_text(f'{json.dumps(_ROWS[0])}\n{{"messages": [\n')
  dataset = g4.data.Jsonl(path=path, **_OPTIONS)
  assert len(list(dataset)) == 1
  strict = dataclasses.replace(_TASK, max_malformed=0)
  dataset = dataclasses.replace(dataset, transforms=[strict])
  with pytest.raises(
      ValueError, match=r'not JSON: line 2 of .*rows.jsonl \(Expect'
  ):
    list(dataset)
