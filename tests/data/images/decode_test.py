"""Tests of the forms that datasets have for images, and of damaged ones."""

import io
import pathlib

import numpy as np
from PIL import Image
import pyarrow as pa
from pyarrow import parquet
import pytest

from gemma4_lora.data.images import _decode
from gemma4_lora.data.layouts import _fields

_ARRAY = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)


def _encoded(file_format='PNG'):
  file = io.BytesIO()
  Image.fromarray(_ARRAY).save(file, format=file_format)
  return file.getvalue()


def _assert_read(value, num=1):
  images = _decode.images(value, field='images')
  assert len(images) == num
  for image in images:
    got = _decode.as_rgb(image, field='images')
    np.testing.assert_array_equal(got, _ARRAY)


@pytest.mark.parametrize(
    'value, num',
    [
        (None, 0),
        ([], 0),
        (_ARRAY, 1),
        (Image.fromarray(_ARRAY), 1),
        (np.stack([_ARRAY] * 2), 2),
        ([_ARRAY, Image.fromarray(_ARRAY), _encoded()], 3),
        (_encoded(), 1),
        (np.bytes_(_encoded()), 1),
        ({'bytes': _encoded(), 'path': None}, 1),
        ({'bytes': _encoded(), 'path': 'cat.png'}, 1),
        ([{'bytes': bytearray(_encoded())}] * 2, 2),
        ({'bytes': [_encoded()] * 2, 'path': [None, None]}, 2),
        (np.array([_encoded()], object), 1),
        (np.array(_encoded(), object), 1),
    ],
)
def test_forms_of_datasets(value, num):
  _assert_read(value, num)


def test_paths(tmp_path):
  path = tmp_path / 'cat.png'
  path.write_bytes(_encoded())
  for value in (str(path), {'bytes': None, 'path': str(path)}):
    _assert_read(value)
    _assert_read([value] * 2, 2)


def test_columns_of_parquet(tmp_path):
  """As Hugging Face writes them, one image per row or a list."""
  entry = {'bytes': _encoded(), 'path': 'cat.png'}
  table = pa.table({'image': [entry], 'images': [[entry, entry]]})
  parquet.write_table(table, tmp_path / 'rows.parquet')
  (row,) = parquet.read_table(tmp_path / 'rows.parquet').to_pylist()
  _assert_read(_fields.raw(row, 'image'))
  _assert_read(_fields.raw(row, 'images'), 2)
  frame = parquet.read_table(tmp_path / 'rows.parquet').to_pandas()
  _assert_read(frame['images'][0], 2)


@pytest.mark.parametrize(
    'value, match',
    [
        (_encoded('JPEG')[:400], "'images' has an image that cannot be read"),
        (_encoded()[:60], 'cannot be read'),
        (b'no image', 'cannot be read: UnidentifiedImageError'),
        (b'', 'cannot be read: UnidentifiedImageError'),
        ('/nowhere/cat.png', 'FileNotFoundError: .*/nowhere/cat.png'),
        ('https://example.com/cat.png', 'https://example.com/cat.png'),
        ({'bytes': None, 'path': None}, 'a dict without bytes and path'),
        ({'url': 'x'}, r"Its fields are: \['url'\]"),
        (7, r'Got: int64 \[\]'),
        (_ARRAY.astype(np.float32), r'uint8 \[H, W, 3\] .* Got: float32'),
        (_ARRAY.transpose(2, 0, 1), r'Got: uint8 \[3, 4, 6\]'),
        ([None], 'Got: object'),
        ({'bytes': [b'', b''], 'path': [None]}, 'of different lengths'),
    ],
)
def test_what_is_no_image_is_an_error_that_names_the_field(value, match):
  with pytest.raises(ValueError, match=match):
    for image in _decode.images(value, field='images'):
      _decode.as_rgb(image, field='images')


def test_a_picture_too_large_to_decode_is_malformed(monkeypatch):
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 4)
  with pytest.raises(ValueError, match='DecompressionBombError'):
    _decode.as_rgb(_encoded(), field='images')


def test_a_path_of_pathlib_is_no_text_but_read(tmp_path):
  path = pathlib.Path(tmp_path / 'cat.png')
  path.write_bytes(_encoded())
  _assert_read([path])
