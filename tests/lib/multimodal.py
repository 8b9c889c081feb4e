"""Models with towers, and one sequence with images and a sound."""

import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gemma4_lora.gemma4 import _upstream
from tests.lib import models

_MAX_PATCHES = 36  # 4 soft tokens at most, pooled from 3 x 3 patches each.
_IMAGE, _AUDIO = -2, -4  # Placeholders among tokens.


def base(name: str, **kwargs: Any) -> nn.Module:
  """Returns a shallow tiny model with its towers."""
  return models.base(name, text_only=False, **kwargs)


def base_of_one_layer(name: str, **kwargs: Any) -> nn.Module:
  """Returns one whose text model is a single layer, for tests of towers."""
  return base(name, cut=models.one_layer, **kwargs)


def images() -> _upstream.PreprocessedVisionInput:
  """Two images, of 3 x 6 and 3 x 3 patches; the rest is padding.

  Padded patches are far from zero: what they touch shows.
  """
  rng = np.random.default_rng(0)
  patches = rng.uniform(0, 1, (2, _MAX_PATCHES, 48)).astype(np.float32)
  positions = np.full((2, _MAX_PATCHES, 2), -1, np.int32)
  for i, width in enumerate((6, 3)):
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(3)), axis=-1)
    positions[i, : 3 * width] = grid.reshape(-1, 2)
  return _upstream.PreprocessedVisionInput(
      patches=jnp.asarray(patches.reshape(1, -1, 48)),
      positions_xy=jnp.asarray(positions.reshape(1, -1, 2)),
      soft_token_counts=(2, 1),
  )


def inputs(*, audio: bool) -> dict[str, Any]:
  """Arguments of the model: text, two images, and a sound if asked for."""
  with jax.ensure_compile_time_eval():  # Also while a caller is traced.
    return dict(_inputs(audio))


@functools.cache
def _inputs(audio: bool) -> dict[str, Any]:
  rng = np.random.default_rng(1)
  tokens = rng.integers(3, 1000, (1, 18))
  tokens[0, 2:4] = _IMAGE
  tokens[0, 6] = _IMAGE
  arguments = {'images': images()}
  if audio:
    tokens[0, 9:12] = _AUDIO
    arguments |= {
        'audio': jnp.asarray(rng.normal(0, 0.1, (1, 1, 2400)), jnp.float32),
        'audio_lengths': jnp.asarray([[2000]]),
        'audio_soft_token_counts': (3,),
    }
  return {'tokens': jnp.asarray(tokens)} | arguments
