"""LoRA leaves of random numbers, without compiling `model.init`."""

from typing import Any

import numpy as np

from gemma4_lora import g4


def make(model: g4.nn.LoRA, *, seed: int = 0) -> dict[str, Any]:
  """Returns the leaves, nested: A, B, and magnitudes about 1."""
  rng = np.random.default_rng(seed)
  leaves = {}
  for linear in model.adapted:
    node = leaves
    for key in linear.row.lora_path.split('.'):
      node = node.setdefault(key, {})
    for name, shape, size in zip('ab', linear.shapes, (0.2, 0.1), strict=True):
      node[name] = rng.normal(0, size, shape).astype(np.float32)
    if linear.use_dora:
      shape = linear.row.out_shape
      node['m'] = rng.uniform(0.8, 1.2, shape).astype(np.float32)
  return leaves
