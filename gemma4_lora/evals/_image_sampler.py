"""gemma's sampler of texts, for prompts with the images of `g4.data.ChatTask`.

`gm.text.Gemma4Sampler` takes images of one conversation, and compiles once for
each number and size of images. Patches of `ChatTask` have one shape for all
images, and `g4.nn.LoRA` takes those of several conversations.

Written for gemma 4.0.1 and 4.1.0: the input of its sampler is private.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import flax
from gemma import gm
from gemma.gm.text import _sampler
from gemma.gm.utils import _types
import jax.numpy as jnp
from kauldron import kd
import numpy as np

from gemma4_lora.data.images import _patches
from gemma4_lora.gemma4 import _upstream


@flax.struct.dataclass
class Images:
  """Images of the prompts that are sampled together.

  Attributes:
    input: What the model takes.
    counts: Soft tokens of each image, of each prompt.
  """

  input: _upstream.PreprocessedVisionInput
  counts: tuple[tuple[int, ...], ...] = flax.struct.field(pytree_node=False)


def images_of(example: _upstream.PreprocessedVisionInput) -> Images:
  """Returns the images of a prompt, or of a batch, as `ChatTask` gives them."""
  num_images = len(example.soft_token_counts)
  positions = np.asarray(example.positions_xy)
  counts = _patches.soft_token_counts(
      positions.reshape(-1, num_images, positions.shape[-2] // num_images, 2)
  )
  return Images(example, tuple(tuple(row) for row in counts.tolist()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSampler(gm.text.Sampler):
  """`gm.text.Sampler` whose `images=` are `Images`."""

  @classmethod
  def of(cls, sampler: gm.text.Sampler) -> 'ImageSampler':
    """Returns a sampler with the fields of another one."""
    fields = dataclasses.fields(sampler)
    return cls(**{f.name: getattr(sampler, f.name) for f in fields})

  def _get_inputs(
      self,
      *,
      prompt: str | Sequence[str],
      images: Images,
      add_bos: bool,
      has_batch_dim: bool,
      sharding: Any,
  ) -> _types.Input:
    """Returns the tokens, with a place for each soft token, and the patches."""
    prompts = list(prompt) if has_batch_dim else [prompt]
    rows = [
        self._tokens(str(text), counts, add_bos=add_bos)
        for text, counts in zip(prompts, images.counts, strict=True)
    ]
    # Hosts have different prompts, and run one program.
    length = int(_sampler._max_across_hosts(max(map(len, rows))))  # pylint: disable=protected-access
    if length >= self.cache_length:
      raise ValueError(
          f'A prompt has {length} tokens, those of its images included, and the'
          f' cache room for {self.cache_length}, answers included. Raise'
          ' `cache_length=`, or lower `max_soft_tokens=` of the task and the'
          ' model.'
      )
    tokens = jnp.asarray([np.pad(row, (0, length - len(row))) for row in rows])
    if sharding is not None:
      tokens = kd.sharding.device_put(tokens, sharding)
    config = self.model.config.input_config
    return _types.Input(
        text=tokens,
        images=images.input if has_batch_dim else _batch_of_one(images.input),
        config=dataclasses.replace(config, already_expanded=True),
    )

  def _tokens(
      self, text: str, counts: tuple[int, ...], *, add_bos: bool
  ) -> np.ndarray:
    ids = np.asarray(self.tokenizer.encode(text, add_bos=add_bos), np.int32)
    places = ids == self.tokenizer.special_tokens.IMAGE_PLACEHOLDER
    # Blank images come last, and have no place.
    counts = counts[: int(places.sum())]
    ids, _ = _patches.expand(ids, np.zeros(len(ids)), counts, self.tokenizer)
    return ids


def _batch_of_one(
    images: _upstream.PreprocessedVisionInput,
) -> _upstream.PreprocessedVisionInput:
  return dataclasses.replace(
      images,
      patches=images.patches[None],
      positions_xy=images.positions_xy[None],
  )
