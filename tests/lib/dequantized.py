"""What codes and scales stand for, by the formula, in NumPy."""

import jax.numpy as jnp
import numpy as np

from gemma4_lora import g4

# Appendix E of https://arxiv.org/abs/2305.14314.
_NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


def tree(node, dtype):
  """Returns a tree with arrays for what is quantised."""
  if g4.quant.is_quantized(node):
    return jnp.asarray(array(node), dtype)
  if not isinstance(node, dict):
    return node
  return {key: tree(value, dtype) for key, value in node.items()}


def array(node):
  """Returns what codes and scales stand for, float32."""
  codes, scales = node['codes'], node['scales']
  levels = np.asarray(codes).astype(np.float32)
  if codes.dtype == jnp.uint4:
    levels = np.float32(_NF4)[np.asarray(codes).astype(int)]
  if isinstance(scales, dict):
    scales = array(scales)
  scales = np.asarray(scales).astype(np.float32)
  for axis, (n, s) in enumerate(zip(codes.shape, scales.shape, strict=True)):
    scales = np.repeat(scales, n // s, axis)
  return levels * scales + np.asarray(node.get('offset', 0), np.float32)
