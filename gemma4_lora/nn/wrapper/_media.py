"""Corrects what gemma 4.0.1 and 4.1.0 compute wrongly for images and audio.

https://github.com/google-deepmind/gemma/blob/main/gemma/gm/nn/gemma4/_transformer.py
"""

import dataclasses
import functools
import math
from typing import Any

from flax import linen as nn
import jax.numpy as jnp
import numpy as np

from gemma4_lora.gemma4 import _upstream
from gemma4_lora.gemma4.forward import _embedder


def check(*, tokens: Any, images: Any, audio: Any) -> None:
  """Raises if the model cannot take the images or sounds of a batch.

  gemma reads the images of all sequences as those of one (`_encode_vision`),
  which `Images` corrects. It reads the audio of the first sequence alone
  (`_encode_audio`), and then fails on a shape.

  Args:
    tokens: `*B L`
    images: The model's argument, or None.
    audio: The model's argument, or None.

  Raises:
    ValueError: The numbers of images and sequences differ, there is audio of
      more than one sequence, or images in Gemma 3's format.
  """
  if images is not None and not isinstance(
      images, _upstream.PreprocessedVisionInput
  ):
    raise ValueError(
        'Gemma 4 takes images= as a PreprocessedVisionInput of'
        ' gemma.gm.nn.gemma4._transformer: patches, their positions, and how'
        ' many soft tokens each image has, as preprocess_and_patchify of'
        ' gemma.gm.nn.gemma4.vision._preprocessing makes them. Got:'
        f' {type(images).__name__}.'
    )
  shape = np.shape(tokens)
  num_sequences = math.prod(shape[:-1])
  if audio is not None and num_sequences != 1:
    raise ValueError(
        'gemma takes audio of one sequence at a time, and this batch'
        f' has {num_sequences}: tokens are {shape}. Set batch_size=1, and to'
        ' learn from more at once accumulate gradients:'
        ' kd.optim.partial_updates(optax.MultiSteps(..., every_k_schedule=8),'
        ' mask=...).'
    )
  if images is None:
    return
  num_sharing = num_sharing_images(tokens=tokens, images=images)
  if np.shape(images.patches)[0] * num_sharing != num_sequences:
    raise ValueError(
        f'images= are of {np.shape(images.patches)[0]} sequences, and tokens of'
        f' {num_sequences}: patches are {np.shape(images.patches)}, tokens'
        f' {shape}. Give each sequence the same number of images, as'
        ' g4.data.ChatTask(in_images=...) does.'
    )


def num_sharing_images(*, tokens: Any, images: Any) -> int:
  """Returns how many sequences share their images: the answers to one prompt.

  Args:
    tokens: `B L`, or `B A L` for `A` answers to each prompt.
    images: The model's argument: of `B` prompts.
  """
  shape, of_images = np.shape(tokens), np.shape(images.patches)
  if len(shape) == len(of_images) == 3 and shape[0] == of_images[0]:
    return shape[1]
  return 1


def of_each_sequence(
    images: _upstream.PreprocessedVisionInput, num_sharing: int
) -> _upstream.PreprocessedVisionInput:
  """Returns images `B A P D`: those of `B P D`, repeated for `A` sequences."""

  def repeated(x):
    return jnp.broadcast_to(x[:, None], (len(x), num_sharing, *x.shape[1:]))

  return dataclasses.replace(
      images,
      patches=repeated(images.patches),
      positions_xy=repeated(images.positions_xy),
  )


class Images:
  """Interceptor that encodes the images of each sequence separately.

  The number of soft tokens of an image is read from the encoder's mask.
  `soft_token_counts` are constants of the program; with the mask, sequences may
  have images of other sizes, or fewer images. Soft tokens without a placeholder
  in the sequence are left out: gemma's own merge takes as many as it finds.

  Attributes:
    key: Says all that the result depends on.
  """

  def __init__(self, *, num_sharing: int = 1):
    """Initializes it.

    Args:
      num_sharing: How many consecutive sequences share their images, which are
        encoded once.
    """
    self._num_sharing = num_sharing
    self.key = f'images of each {num_sharing} sequences'

  def __call__(self, next_fun, args, kwargs, context) -> Any:
    if not _upstream.is_vision_method(context.module, context.method_name):
      return next_fun(*args, **kwargs)
    (images,) = (*args, *kwargs.values())
    num_prompts = images.patches.shape[0] // self._num_sharing
    num_images = len(images.soft_token_counts)

    def by_image(x):
      x = x[:: self._num_sharing]
      return x.reshape(num_prompts * num_images, -1, x.shape[-1])

    encoder, patches = context.module.vision_encoder, by_image(images.patches)
    _check_num_patches(patches.shape[1], encoder)
    (embeddings, is_real), *_ = encoder(patches, by_image(images.positions_xy))
    embeddings = embeddings.reshape(num_prompts, -1, embeddings.shape[-1])
    if is_real is not None:
      is_real = is_real.reshape(num_prompts, -1)
      # Soft tokens of all images in sequence, then padding.
      order = jnp.argsort(~is_real, axis=1, stable=True)
      embeddings = jnp.take_along_axis(embeddings, order[..., None], axis=1)
    encoded = _embedder.in_text_width(context.module, embeddings[:, None])
    return jnp.repeat(encoded[:, 0], self._num_sharing, axis=0)


def _check_num_patches(num_patches: int, encoder: Any) -> None:
  """Raises unless the tower makes a soft token of each 3 x 3 patches.

  gemma pools other numbers into larger squares, or fails on an assertion.
  """
  if num_patches != encoder.max_patches:
    raise ValueError(
        f'images= have {num_patches} patches each, and the vision tower takes'
        f' {encoder.max_patches}, for {encoder.output_length} soft tokens at'
        f' most. Set max_soft_tokens={encoder.output_length}, of'
        ' g4.data.ChatTask or of the sampler.'
    )


@functools.cache
def _expanded(cls: type[nn.Module]) -> type[nn.Module]:
  """Returns a vision encoder for tokens that have a placeholder per soft token."""
  fields = {'num_mm_tokens_per_image': -3, '__module__': __name__}
  return type(f'Expanded{cls.__name__}', (cls,), fields)


def expanded_vision_encoder(
    encoder: nn.Module,
) -> nn.Module:
  """Returns the encoder such that `Transformer` keeps all its logits.

  Gemma 4 takes tokens that hold a placeholder per soft token already, so that
  there is a logit per token. Yet given images, `Transformer.__call__` skips
  `num_mm_tokens_per_image + 3` logits behind each begin-of-image token (255999)
  as if it had put them in, as Gemma 3 does (`remove_mm_logits`): the logits
  that follow are those of later tokens, and NaN at the end. Samplers ask for
  the last logits only and are not affected.

  With a number of -3 it skips none. The model reads the number in one other
  place, `input_config`, and only without images: it would insert that many
  tokens per image, and there are no images.

  Args:
    encoder: The config's encoder; unbound.
  """
  own = (f.name for f in dataclasses.fields(encoder) if f.init)
  fields = {name: getattr(encoder, name) for name in own}
  return _expanded(type(encoder))(**fields | {'parent': None})
