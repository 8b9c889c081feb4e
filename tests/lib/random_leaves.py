"""LoRA leaves of random numbers, without compiling `model.init`."""

from typing import Any

import flax
import numpy as np

from gemma4_lora import g4


def make(model: g4.nn.LoRA, *, seed: int = 0) -> dict[str, Any]:
  """Returns the leaves, nested: none is trivial, scales are about 1."""
  rng = np.random.default_rng(seed)
  norms = {part.path for part in model.saved if part.row.group == 'norms'}
  leaves = {}
  for path, shape in model.lora_shapes.items():
    if path in norms or path.endswith('.m'):
      leaf = rng.uniform(0.8, 1.2, shape)
    else:
      leaf = rng.normal(0, 0.1 if path.endswith('.b') else 0.2, shape)
    leaves[path] = leaf.astype(np.float32)
  return flax.traverse_util.unflatten_dict(leaves, sep='.')
