"""Images of conversations: patches for the vision tower, places for its tokens."""

import dataclasses
from typing import Any

from etils import enp
from gemma import gm
import numpy as np

from gemma4_lora.data.images import _decode
from gemma4_lora.gemma4 import _upstream

# The tokens that gemma's samplers put in the place of `<|image|>`.
_SOFT_TOKEN = -2
_TWO_NEWLINES = 108
# Soft tokens are pooled from squares of as many patches a side.
_POOLING = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images:
  """Images of one conversation.

  Attributes:
    counts: Soft tokens of each image.
    input: What the model takes, without the axis of sequences.
  """

  counts: tuple[int, ...]
  input: _upstream.PreprocessedVisionInput


def preprocess(
    images: Any,
    *,
    field: str,
    num_images: int,
    max_images: int,
    max_soft_tokens: int,
    patch_size: int,
) -> Images:
  """Returns the patches of the images, filled up with blank images.

  All conversations have arrays of the same shapes: those without images, too.

  Args:
    images: What the dataset has at `field`, see `ChatTask.in_images`.
    field: Field that held the images, for errors.
    num_images: How many the conversation has places for.
    max_images: How many there are room for.
    max_soft_tokens: The most tokens of each image.
    patch_size: Side of a patch, in pixels.

  Raises:
    ValueError: Another number of images, or one that cannot be read.
  """
  images = _decode.images(images, field=field)
  if len(images) != num_images:
    raise ValueError(
        f'Field {field!r} has {len(images)} images, and the conversation places'
        f' for {num_images}: <|image|> in a text, or a part of type image.'
    )
  if num_images > max_images:
    raise ValueError(
        f'Field {field!r} has {num_images} images, and max_images={max_images}.'
        ' Raise `max_images`, or leave such rows out: `max_malformed=`.'
    )
  num_patches = max_soft_tokens * _POOLING**2
  patches = np.zeros((max_images, num_patches, 3 * patch_size**2), np.float32)
  # A blank image has one soft token, which is not used.
  grid = np.stack(np.meshgrid(range(_POOLING), range(_POOLING)), axis=-1)
  positions = np.full((max_images, num_patches, 2), -1, np.int32)
  positions[:, : _POOLING**2] = grid.reshape(-1, 2)
  counts = []
  for i, image in enumerate(images):
    pixels = _upstream.resize_image(
        _decode.as_rgb(image, field=field),
        patch_size=patch_size,
        max_patches=num_patches,
        pooling_kernel_size=_POOLING,
    )
    own, at = _patches(pixels.astype(np.float32) / 255, patch_size)
    patches[i, : len(own)] = own
    positions[i, : len(own)] = at
    counts.append(len(own) // _POOLING**2)
  return Images(
      counts=tuple(counts),
      input=_upstream.PreprocessedVisionInput(
          patches=patches.reshape(-1, patches.shape[-1]),
          positions_xy=positions.reshape(-1, 2),
          soft_token_counts=(max_soft_tokens,) * max_images,
      ),
  )


def specs(
    *, max_images: int, max_soft_tokens: int, patch_size: int
) -> _upstream.PreprocessedVisionInput:
  """Returns the shapes of the output of `preprocess`."""
  num_patches = max_images * max_soft_tokens * _POOLING**2
  return _upstream.PreprocessedVisionInput(
      patches=enp.ArraySpec(
          shape=(num_patches, 3 * patch_size**2), dtype=np.dtype(np.float32)
      ),
      positions_xy=enp.ArraySpec(
          shape=(num_patches, 2), dtype=np.dtype(np.int32)
      ),
      soft_token_counts=(max_soft_tokens,) * max_images,
  )


def soft_token_counts(positions_xy: np.ndarray) -> np.ndarray:
  """Returns how many soft tokens each image has; 1 if it is a blank one.

  Args:
    positions_xy: Those that `preprocess` gives, i32 `[*B, P, 2]` with an axis of
      images among `*B`.
  """
  is_patch = (positions_xy != -1).any(axis=-1)
  return is_patch.sum(axis=-1) // _POOLING**2


def expand(
    ids: np.ndarray,
    weights: np.ndarray,
    counts: tuple[int, ...],
    tokenizer: gm.text.Tokenizer,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the tokens with each `<|image|>` as a place for its soft tokens.

  They are those that gemma's samplers feed, and have no loss.

  Raises:
    ValueError: The vocabulary has no token for images.
  """
  if not counts:
    return ids, weights
  special: Any = tokenizer.special_tokens
  (places,) = np.nonzero(ids == special.IMAGE_PLACEHOLDER)
  if len(places) != len(counts):
    raise ValueError(
        f'The vocabulary at {tokenizer.path} makes {len(places)} tokens of'
        f' {len(counts)} <|image|>: it has no token for images.'
    )
  new_ids, new_weights, begin = [], [], 0
  for place, count in zip(places, counts, strict=True):
    image = [
        _TWO_NEWLINES,
        special.START_OF_IMAGE,
        *[_SOFT_TOKEN] * count,
        special.END_OF_IMAGE,
        _TWO_NEWLINES,
    ]
    new_ids += [ids[begin:place], np.asarray(image, np.int32)]
    new_weights += [weights[begin:place], np.zeros(len(image), np.float32)]
    begin = place + 1
  return (
      np.concatenate([*new_ids, ids[begin:]]),
      np.concatenate([*new_weights, weights[begin:]]),
  )


def _patches(
    image: np.ndarray, patch_size: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns f32 `[P, D]` and i32 `[P, 2]`, x and y: as gemma's, without jax.

  Worker processes must not touch the TPU.
  """
  height, width = (size // patch_size for size in image.shape[:2])
  squares = image.reshape(height, patch_size, width, patch_size, 3)
  patches = squares.transpose(0, 2, 1, 3, 4).reshape(height * width, -1)
  grid = np.stack(np.meshgrid(range(width), range(height)), axis=-1)
  return patches, grid.reshape(-1, 2)
