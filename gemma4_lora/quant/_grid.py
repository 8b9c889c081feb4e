"""4-bit integers in groups, without loss for checkpoints on such a grid.

Weights of quantisation-aware training are `code * scale`, rounded to the file's
dtype, and the scale is not in the file. But where a group's largest weight has
code k, the scale is that weight over k, within its rounding; and each weight of
the group narrows it: `(|w| +- half a unit in the last place) / |code|`. If
those intervals intersect for one of k = 1 ... 8, the group is on the grid.
"""

from typing import Any

import jax
import jax.numpy as jnp

_LARGEST = 8
# How many groups are tried first, to see whether to search the rest.
_SAMPLE = 1024
# As in qwix: the outermost codes reach half a step further.
_BOUND = 7.5


@jax.jit(static_argnames='scale_dtype')
def quantize(
    groups: jax.Array, *, scale_dtype: Any
) -> tuple[jax.Array, jax.Array]:
  """Returns codes and scales of groups.

  Args:
    groups: `[m, n]`, n weights share a scale.
    scale_dtype: Dtype of the scales.

  Returns:
    int4 `[m, n]`, and `[m]`.
  """
  w = groups
  largest = jnp.abs(w.astype(jnp.float32)).max(-1)
  scales = jnp.where(largest > 0, largest / _BOUND, 1).astype(scale_dtype)
  step = -(-w.shape[0] // _SAMPLE)
  _, is_found = _search(w[::step], scale_dtype)
  is_grid = (is_found & (largest[::step] > 0)).any()

  def search():
    found, is_found = _search(w, scale_dtype)
    return jnp.where(is_found, found, scales)

  scales = jax.lax.cond(is_grid, search, lambda: scales)
  codes = _codes(w.astype(jnp.float32), scales)
  return codes.astype(jnp.int4), scales


def _codes(w: jax.Array, scales: jax.Array) -> jax.Array:
  """Returns the nearest codes, f32 `[m, n]`."""
  return jnp.round(w / scales.astype(jnp.float32)[:, None]).clip(-8, 7)


def _search(w: jax.Array, scale_dtype: Any) -> tuple[jax.Array, jax.Array]:
  """Returns scales that lose nothing, and which groups have one, `[m]` each."""
  above, below = _half_units(w)
  size = jnp.abs(w.astype(jnp.float32))
  largest = size.max(-1)

  def by(k, carry):
    scales, is_found = carry
    code = jnp.round(size * k / jnp.where(largest > 0, largest, 1)[:, None])
    inverse = 1 / jnp.where(code > 0, code, 1)
    low = jnp.where(code > 0, (size - below) * inverse, 0).max(-1)
    high = jnp.where(code > 0, (size + above) * inverse, jnp.inf).min(-1)
    middle = ((low + high) / 2).astype(scale_dtype)
    # The middle may be rounded out of the interval, and its neighbour into it.
    for candidate in (
        middle,
        jnp.nextafter(middle, jnp.full_like(middle, 0)),
        jnp.nextafter(middle, jnp.full_like(middle, jnp.inf)),
    ):
      is_new = ~is_found & _is_lossless(w, candidate)
      scales = jnp.where(is_new, candidate, scales)
      is_found |= is_new
    return scales, is_found

  init = (jnp.ones(w.shape[:1], scale_dtype), largest == 0)
  return jax.lax.fori_loop(1, _LARGEST + 1, by, init)


def _is_lossless(w: jax.Array, scales: jax.Array) -> jax.Array:
  """Whether codes times scales equal the weights exactly, `[m]`."""
  usable = (scales > 0) & jnp.isfinite(scales)
  scales = jnp.where(usable, scales, 1)
  codes = _codes(w.astype(jnp.float32), scales)
  back = (codes * scales.astype(jnp.float32)[:, None]).astype(w.dtype)
  return usable & (back == w).all(-1)


def _half_units(w: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Half the distance to the next larger and smaller number, f32."""
  mantissa, exponent = jnp.frexp(jnp.abs(w.astype(jnp.float32)))
  one = jnp.ones(w.shape, jnp.float32)
  above = jnp.ldexp(one, exponent - 2 - jnp.finfo(w.dtype).nmant)
  return above, jnp.where(mantissa == 0.5, above / 2, above)
