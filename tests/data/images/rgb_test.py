"""Tests of the colours that a person sees, against NumPy's own arithmetic."""

import io

from absl import logging
import numpy as np
from PIL import ExifTags
from PIL import Image
import pytest

from gemma4_lora.data.images import _rgb

# Where EXIF's specification says row 0 and column 0 of the stored image are.
_UPRIGHT = {
    1: lambda x: x,
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x.swapaxes(0, 1), 2),
    8: np.rot90,
}


def _colours(*channels, height=3, width=5, top=256, dtype=np.uint8):
  rng = np.random.default_rng(len(channels))
  return rng.integers(0, top, (height, width, *channels), dtype)


def _stored(image, file_format='PNG', **kwargs):
  """The image after a file, as Pillow opens it."""
  file = io.BytesIO()
  image.save(file, format=file_format, **kwargs)
  return Image.open(file)


def _over_white(colour, alpha):
  """In real numbers, from 0 to 1."""
  colour, alpha = (np.asarray(x, np.float64) / 255 for x in (colour, alpha))
  return 255 * (colour * alpha[..., None] + 1 - alpha[..., None])


def _grey(values):
  return np.repeat(np.round(values)[..., None], 3, axis=-1)


def _assert_same(image, wanted, *, within=0.0):
  got = _rgb.rgb(image)
  assert got.dtype == np.uint8 and got.shape[-1] == 3
  np.testing.assert_allclose(got, wanted, rtol=0, atol=within)


@pytest.mark.parametrize('file_format', ['PNG', 'TIFF', 'WEBP'])
@pytest.mark.parametrize('orientation', _UPRIGHT)
def test_exif_is_turned_upright_once(orientation, file_format):
  colours = _colours(3)
  exif = Image.Exif()
  exif[ExifTags.Base.Orientation] = orientation
  kwargs = {'lossless': True} if file_format == 'WEBP' else {}
  image = _stored(Image.fromarray(colours), file_format, exif=exif, **kwargs)
  wanted = _UPRIGHT[orientation](colours)
  _assert_same(image, wanted)
  _assert_same(image, wanted)  # The dataset's image is as it was.


def test_exif_that_is_damaged_turns_nothing():
  image = Image.fromarray(_colours(3))
  image.info['exif'] = b'Exif\0\0MM\0*nonsense'
  _assert_same(image, _colours(3))


@pytest.mark.parametrize('mode', ['I;16', 'I;16B', 'array'])
def test_16_bits(mode):
  values = _colours(top=65536, dtype=np.uint16)
  values[0, :3] = 0, 65535, 255
  image = values
  if mode != 'array':
    raw = values.astype('<u2' if mode == 'I;16' else '>u2').tobytes()
    image = Image.frombytes(mode, values.shape[::-1], raw)
  _assert_same(image, _grey(values / 65535 * 255))
  if mode == 'I;16':
    _assert_same(_stored(image), _grey(values / 65535 * 255))


def test_16_bits_of_colours():
  values = _colours(4, top=65536, dtype=np.uint16)
  wanted = _over_white(values[..., :3] / 257, values[..., 3] / 257)
  _assert_same(values, wanted, within=1.5)


def test_whole_numbers():
  for top in (255, 65535):
    values = _colours(top=top + 1, dtype=np.int32)
    values[0, 0] = top
    _assert_same(Image.fromarray(values), _grey(values / top * 255))
  # A dark picture of a file that has 16 bits.
  file = io.BytesIO(b'P5 2 1 65535\n' + bytes([0, 200, 2, 0]))
  image = Image.open(file)
  assert image.mode.startswith('I')
  _assert_same(image, _grey(np.array([[200, 512]]) / 257))


@pytest.mark.parametrize('top', [1, 255])
def test_real_numbers(top):
  values = _colours().astype(np.float32) / 255 * top
  values[0, 0] = top
  _assert_same(Image.fromarray(values), _grey(values / top * 255))


@pytest.mark.parametrize('mode', ['RGBA', 'LA', 'PA', 'array', 'two'])
def test_alpha_is_over_white(mode):
  colours = _colours(4)
  colours[0, :, 3] = 0, 1, 127, 254, 255
  rgb, alpha = colours[..., :3], colours[..., 3]
  image = Image.fromarray(colours, 'RGBA')
  if mode == 'array':
    image = colours
  elif mode in ('LA', 'two'):
    rgb = np.repeat(rgb[..., :1], 3, axis=-1)
    two = colours[..., [0, 3]]
    image = two if mode == 'two' else Image.fromarray(two, 'LA')
  elif mode == 'PA':
    image = Image.fromarray(rgb).quantize(8).convert('PA')
    rgb = np.asarray(image.convert('RGB'))
    image.putalpha(Image.fromarray(alpha))
  wanted = _over_white(rgb, alpha)
  _assert_same(image, wanted, within=0.51)
  if mode in ('RGBA', 'LA'):
    _assert_same(_stored(image), wanted, within=0.51)


@pytest.mark.parametrize('mode', ['RGB', 'L', '1', 'I;16', 'P', 'P bytes'])
def test_a_colour_that_stands_for_transparent_is_white(mode):
  """The key of PNG and GIF, in place of a channel of alpha."""
  if mode == 'RGB':
    stored = _colours(3)
    shown, key = stored.copy(), tuple(map(int, stored[1, 2]))
    shown[1, 2] = 255
    image = Image.fromarray(stored)
  elif mode.startswith('P'):
    indices = _colours(top=3)
    palette = np.array([[9, 8, 7], [200, 0, 0], [0, 100, 50]], np.uint8)
    image = Image.fromarray(indices, 'P')
    image.putpalette(palette.tobytes())
    shown = palette.astype(float)[indices]
    shown[indices == 1] = 255
    key = 1
    if mode == 'P bytes':
      key = bytes([255, 0, 51])
      shown[indices == 2] = palette[2] * 0.2 + 255 * 0.8
  else:
    top = {'L': 256, '1': 2, 'I;16': 65536}[mode]
    dtype = np.uint16 if mode == 'I;16' else np.uint8
    stored = _colours(top=top, dtype=dtype)
    image = Image.fromarray(stored * (255 if mode == '1' else 1))
    image = image.convert('1') if mode == '1' else image
    key = int(stored[1, 2])
    shown = _grey(np.where(stored == key, 255, stored / (top - 1) * 255))
    key *= 255 if mode == '1' else 1
  image = _stored(image, transparency=key)
  assert image.mode == mode.split()[0]
  _assert_same(image, shown, within=0.51)


@pytest.mark.parametrize('mode', ['L', '1', 'P', 'CMYK', 'YCbCr', 'RGBX'])
def test_other_modes(mode):
  image = Image.fromarray(_colours(3)).convert(mode)
  raw = np.asarray(image).astype(np.float64)
  if mode in ('L', '1'):
    wanted = _grey(raw * (255 if mode == '1' else 1))
  elif mode == 'P':
    wanted = np.array(image.getpalette()).reshape(-1, 3)[np.asarray(image)]
  elif mode == 'CMYK':
    wanted = (255 - raw[..., :3]) * (255 - raw[..., 3:]) / 255
  elif mode == 'YCbCr':  # JFIF's matrix.
    y, cb, cr = raw[..., 0], raw[..., 1] - 128, raw[..., 2] - 128
    wanted = np.stack(
        [y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], -1
    ).clip(0, 255)
  else:
    wanted = _colours(3)
  _assert_same(image, wanted, within=1.0)


def test_arrays_of_grey():
  values = _colours()
  _assert_same(values, _grey(values))
  _assert_same(values[..., None], _grey(values))


@pytest.mark.parametrize('file_format', ['GIF', 'WEBP', 'PNG', 'TIFF'])
def test_the_first_of_several_frames_is_taken_and_said_once(
    file_format, monkeypatch
):
  said = []
  monkeypatch.setattr(logging, 'warning', lambda *args: said.append(args))
  _rgb._say_once.cache_clear()
  first, second = np.zeros((2, 4, 4, 3), np.uint8) + np.array(
      [[[[200, 10, 20]]], [[[1, 2, 250]]]], np.uint8
  )
  kwargs = {'lossless': True} if file_format == 'WEBP' else {}
  image = _stored(
      Image.fromarray(first),
      file_format,
      save_all=True,
      append_images=[Image.fromarray(second)],
      **kwargs,
  )
  image.seek(1)
  _assert_same(image, first)
  _assert_same(image, first)
  ((_, message),) = said
  assert 'several frames' in message and 'the first is taken' in message


@pytest.mark.parametrize(
    'values, match',
    [
        (np.array([[-1, 5]], np.int32), 'from -1 to 5, are no shades'),
        (np.array([[0, 65536]], np.int32), 'between 0 and 65535'),
        (np.array([[0, 256]], np.float32), 'between 0 and 255'),
        (np.array([[0, np.nan]], np.float32), 'from nan to nan'),
        (np.zeros((0, 3, 3), np.uint8), 'it has no pixels'),
    ],
)
def test_what_no_person_could_see_is_an_error(values, match):
  image = Image.fromarray(values) if values.size else values
  with pytest.raises(ValueError, match=match):
    _rgb.rgb(image)
