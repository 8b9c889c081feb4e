"""Images of any kind in the colours that a person sees, in 8 bits.

Rules for files that do not define their numbers:

* Transparent is white.
* EXIF's orientation is applied.
* Of an animation, or of pages, the first is taken.
* 16 bits are scaled to 8. Whole numbers without a size (mode `I`) are of 8 bits
  if none is above 255, else of 16; in files that have 16 bits, of 16.
* Real numbers (mode `F`) are from 0 to 1 if none is above 1, else from 0 to 255.
* Colour profiles are not applied: CMYK is converted by Pillow.
"""

import functools
from typing import Any

from absl import logging
import numpy as np
from PIL import ExifTags
from PIL import Image
from PIL import ImageOps

# Formats whose mode `I` always is of 16 bits.
_16_BIT_FORMATS = ('PNG', 'PPM', 'JPEG2000')


def rgb(image: Any) -> np.ndarray:
  """Returns u8 `[H, W, 3]` for a PIL image, or an array that `is_image`.

  Raises:
    Exception: Any error of Pillow's decoders.
    ValueError: It has no pixels, or numbers that are not colours.
  """
  if isinstance(image, Image.Image):
    image = _pixels(_upright(_first_frame(image)))
  if not image.size:
    raise ValueError(f'it has no pixels: {list(image.shape)}')
  if image.dtype.itemsize == 2:
    image = _in_8_bits(image)
  image = image[..., None] if image.ndim == 2 else image
  if image.shape[-1] in (2, 4):
    image = _over_white(image[..., :-1], image[..., -1:])
  if image.shape[-1] == 1:
    image = np.repeat(image, 3, axis=-1)
  return image


def is_image(array: np.ndarray) -> bool:
  """Whether an array holds one image: grey or RGB, with or without alpha."""
  if array.dtype not in (np.uint8, np.uint16):
    return False
  return array.ndim == 2 or array.ndim == 3 and 1 <= array.shape[-1] <= 4


def _first_frame(image: Image.Image) -> Image.Image:
  if getattr(image, 'is_animated', False):
    _say_once(
        'g4.data: an image has several frames (an animation, or pages): the'
        ' first is taken, of all such images. This is said once per process.'
    )
    image.seek(0)
  image.load()
  return image


def _upright(image: Image.Image) -> Image.Image:
  try:
    orientation = image.getexif().get(ExifTags.Base.Orientation)
  # Pillow raises many types for damaged EXIF.
  except Exception:  # pylint: disable=broad-exception-caught
    _say_once(
        'g4.data: an image has EXIF that cannot be read. Viewers show it as it'
        ' is stored, and so it is taken. This is said once per process.'
    )
    return image
  return image if orientation is None else ImageOps.exif_transpose(image)


def _pixels(image: Image.Image) -> np.ndarray:
  """Returns u8 or u16, `[H, W]` or `[H, W, C]`."""
  if image.mode.startswith('I;16'):
    grey = np.asarray(image).astype(np.uint16)
    return _with_key(grey, image.info.get('transparency'))
  if image.mode == 'I':
    return _of_integers(np.asarray(image), image.format)
  if image.mode == 'F':
    return _of_reals(np.asarray(image))
  if image.mode == 'La':
    image = image.convert('LA')
  if image.has_transparency_data:
    return np.asarray(image.convert('RGBA'))
  return np.asarray(image.convert('RGB'))


def _with_key(grey: np.ndarray, key: Any) -> np.ndarray:
  """Returns grey with alpha, if one of its values stands for transparent."""
  if not isinstance(key, int):
    return grey
  alpha = np.where(grey == key, 0, 65535).astype(np.uint16)
  return np.stack([grey, alpha], axis=-1)


def _of_integers(grey: np.ndarray, file_format: str | None) -> np.ndarray:
  _check_range(grey, 65535)
  if grey.max() <= 255 and file_format not in _16_BIT_FORMATS:
    return grey.astype(np.uint8)
  return grey.astype(np.uint16)


def _of_reals(grey: np.ndarray) -> np.ndarray:
  _check_range(grey, 255)
  scale = 255 if grey.max() <= 1 else 1
  return np.round(grey * scale).astype(np.uint8)


def _check_range(grey: np.ndarray, largest: int) -> None:
  # NaN is in no range.
  if not grey.size or (grey.min() >= 0 and grey.max() <= largest):
    return
  raise ValueError(
      f'its numbers, from {grey.min():g} to {grey.max():g}, are no shades of'
      f' grey between 0 and {largest}. Convert it to 8 bits first'
  )


def _in_8_bits(image: np.ndarray) -> np.ndarray:
  return ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
  alpha = alpha.astype(np.uint32)
  mixed = colour * alpha + 255 * (255 - alpha)
  return ((mixed + 127) // 255).astype(np.uint8)


@functools.cache
def _say_once(message: str) -> None:
  logging.warning('%s', message)
