"""Reads a field of images: arrays, PIL images, encoded files, paths."""

import io
import os
from typing import Any

import numpy as np
from PIL import Image

from gemma4_lora.data.images import _rgb
from gemma4_lora.host import _paths

_FORMS = (
    'uint8 [H, W, 3] or of PIL, an encoded file (`bytes`), its path, or'
    " {'bytes': ..., 'path': ...}"
)


def images(value: Any, *, field: str) -> list[Any]:
  """Returns the images of a field, each as the dataset holds it.

  Args:
    value: A list of images, or one; None for none. Lists may be arrays (of
      Parquet), a list of dicts may be a dict of lists (of TFDS), and an array
      `[N, H, W, C]` is a list.
    field: Field that holds it, for errors.

  Raises:
    ValueError: A dict of lists of different lengths.
  """
  if value is None:
    return []
  if isinstance(value, dict):
    return _of_dict(value, field=field)
  if isinstance(value, np.ndarray) and value.dtype.kind in 'OSU':
    return list(value) if value.ndim else images(value.item(), field=field)
  if isinstance(value, list | tuple):
    return list(value)
  is_list = not isinstance(value, Image.Image | bytes | str | os.PathLike)
  return list(value) if is_list and np.ndim(value) == 4 else [value]


def as_rgb(image: Any, *, field: str) -> np.ndarray:
  """Returns an image of `images` as a person sees it, u8 `[H, W, 3]`.

  Raises:
    ValueError: It is not an image, is damaged, or its file is missing.
  """
  try:
    image = _opened(image, field=field)
    return _rgb.rgb(image)
  except _NoImageError as e:
    raise ValueError(str(e)) from None
  # Decoders raise many types: SyntaxError, EOFError, struct.error, ...
  except Exception as e:  # pylint: disable=broad-exception-caught
    raise ValueError(
        f'Field {field!r} has an image that cannot be read:'
        f' {type(e).__name__}: {e}'
    ) from e


class _NoImageError(ValueError):
  """The field does not hold an image."""


def _of_dict(value: dict[str, Any], *, field: str) -> list[Any]:
  columns = {k: v for k, v in value.items() if _is_list(v)}
  if not columns:
    return [value]
  lengths = {name: len(column) for name, column in columns.items()}
  if len(set(lengths.values())) > 1:
    raise ValueError(
        f'Field {field!r} is a dict of lists of different lengths: {lengths}.'
    )
  (length,) = set(lengths.values())
  return [
      {name: column[i] for name, column in columns.items()}
      for i in range(length)
  ]


def _is_list(value: Any) -> bool:
  return isinstance(value, list | tuple | np.ndarray)


def _opened(image: Any, *, field: str) -> Any:
  """Returns a PIL image, or an array."""
  if isinstance(image, dict):
    held, path = image.get('bytes'), image.get('path')
    if held is None and path is None:
      raise _NoImageError(
          f'Field {field!r} has a dict without bytes and path. Its fields are:'
          f' {list(image)}. An image is {_FORMS}.'
      )
    image = path if held is None else held
  if isinstance(image, Image.Image):
    return image
  if isinstance(image, str | os.PathLike):
    image = _paths.path(image).read_bytes()
  if isinstance(image, bytes | bytearray | memoryview):
    return Image.open(io.BytesIO(image))
  array = np.asarray(image)
  if not _rgb.is_image(array):
    raise _NoImageError(
        f'Field {field!r} should have images, {_FORMS}. Got:'
        f' {array.dtype} {list(array.shape)}'
    )
  return array
