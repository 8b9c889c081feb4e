"""Transforms of a user's own: subclasses of loaders that we know."""

import dataclasses
from typing import Any

from gemma import gm
import jax.numpy as jnp

from gemma4_lora import _trees
from gemma4_lora import g4

DOUBLED = ('layer_0', 'attn', 'q_einsum', 'w')
NORM = ('final_norm', 'scale')


def doubled(params: Any, path: _trees.Path = DOUBLED) -> Any:
  """Returns parameters with one weight times two."""
  weight = jnp.asarray(_trees.get_at(params, path))
  return _trees.replace_at(params, path, weight * 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Doubled(g4.ckpts.PartialLoad):
  """Restores the base, and doubles one weight."""

  leaf: tuple[str, ...] = DOUBLED

  def transform(self, state):
    state = super().transform(state)
    return state.replace(params=doubled(state.params, self.leaf))


class DoubledOfGemma(gm.ckpts.LoadCheckpoint):
  """The same by gemma's loader."""

  def transform(self, state):
    state = super().transform(state)
    return state.replace(params=doubled(state.params))


class DoubledSkip(g4.ckpts.SkipLoRA4):
  """Doubles a weight once LoRA has what it takes of the base."""

  def transform(self, state):
    state = super().transform(state)
    return state.replace(params=doubled(state.params))
