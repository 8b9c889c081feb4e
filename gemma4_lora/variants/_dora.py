"""DoRA: a weight as a magnitude per output feature, and a direction.

The weight that DoRA applies is `m * (W + s B A) / norm(W + s B A)`, the norm
taken over the input of each output feature. `m` is trained beside A and B, and
starts at `norm(W)`, so that step 0 is the base model. As the paper suggests
(section 4.3) and PEFT does, no gradient flows through the norm.

Reference: https://arxiv.org/abs/2402.09353
"""

from collections.abc import Mapping
import dataclasses
import functools
import string

import jax
import jax.numpy as jnp

from gemma4_lora.gemma4 import _linears
from gemma4_lora.gemma4 import _weights
from gemma4_lora.variants import _leaf
from gemma4_lora.variants import _variant


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Dora(_variant.Variant):
  """The branch and the base, both times the ratio of magnitude and norm."""

  def delta(self, call: _variant.Call) -> jax.Array:
    weight, base = call.base_weight(), call.base_output()
    ratio = _ratio(
        call.leaves['m'],
        weight,
        # As the branch has them.
        call.leaves['a'].astype(base.dtype),
        call.leaves['b'].astype(base.dtype),
        call.row,
        scale=call.scale,
    )
    return _delta(base, call.branch, call.spread(ratio))

  def fused(
      self,
      part: jax.Array,
      change: jax.Array,
      own: Mapping[str, jax.Array],
      row: _linears.Linear,
  ) -> jax.Array:
    merged = part + change
    in_axes, _ = _weights.axes(row)
    norm = jnp.sqrt(jnp.sum(jnp.square(merged), axis=in_axes, keepdims=True))
    m = _weights.over_outputs(own['m'].astype(jnp.float32), row)
    # A feature without weights has no direction.
    return merged * (m / jnp.where(norm > 0, norm, 1))


def _magnitude(weight: jax.Array, row: _linears.Linear) -> jax.Array:
  """Returns the magnitude of a base weight, `float32[*out]`.

  For a stacked weight `float32[L, *out]`: the layer axis is not an input.

  Args:
    weight: The whole base weight.
    row: The projection.
  """
  return jnp.sqrt(_sum_of_squares(_weights.part(weight, row), row))


def _ratio(
    m: jax.Array,
    weight: jax.Array,
    a: jax.Array,
    b: jax.Array,
    row: _linears.Linear,
    *,
    scale: float,
) -> jax.Array:
  """Returns DoRA's factor of each output feature, `float32[*out]`.

  That is `m / norm(W + s B A)`. No merged weight is formed: its squared norm is
  the squared norm of W, plus that of s B A, plus twice their inner product. The
  last two are low-rank products.

  Args:
    m: The magnitude, `[*out]`.
    weight: The whole base weight.
    a: A, `[*in, rank]`.
    b: B, `[rank, *out]`.
    row: The projection.
    scale: Alpha / rank; the base's own factor cancels out.
  """
  part = _weights.part(weight, row)
  in_axes, out_axes = _weights.axes(row)
  letters = string.ascii_lowercase[: part.ndim]
  ins = ''.join(letters[axis] for axis in in_axes)
  outs = ''.join(letters[axis] for axis in out_axes)

  # Products of a bfloat16 weight are not rounded to bfloat16.
  w32, a32, b32 = (x.astype(jnp.float32) for x in (part, a, b))
  product = functools.partial(jnp.einsum, precision='highest')
  across = product(f'{letters},{ins}y->y{outs}', w32, a32)
  gram = product(f'{ins}y,{ins}z->yz', a32, a32)
  within = product(f'yz,z{outs}->y{outs}', gram, b32)
  squared = _sum_of_squares(part, row) + jnp.sum(
      b32 * (2 * scale * across + scale**2 * within), axis=0
  )
  norm = jnp.sqrt(jnp.maximum(squared, 0))
  # A feature without weights has no direction: leave it, rather than 0 / 0.
  norm = jnp.where(norm > 0, norm, 1)
  return m.astype(jnp.float32) / jax.lax.stop_gradient(norm)


def _delta(
    base: jax.Array,
    branch: jax.Array,
    ratio: jax.Array,
) -> jax.Array:
  """Returns what DoRA adds to the base's output, in its dtype.

  Computed as a difference and in float32: in bfloat16, a magnitude that
  training moved by less than 1/256 would not move the output.

  Args:
    base: The base's output for the projection.
    branch: The output of the low-rank branch.
    ratio: The result of `_ratio`, laid out for broadcasting against the output.
  """
  change = (ratio - 1) * base.astype(jnp.float32)
  return (change + ratio * branch.astype(jnp.float32)).astype(base.dtype)


def _sum_of_squares(part: jax.Array, row: _linears.Linear) -> jax.Array:
  in_axes, _ = _weights.axes(row)
  info = jnp.finfo(part.dtype)
  # XLA drops a pair of casts: in a compiled `model.init`, the norms would be
  # those of weights that were never rounded to bfloat16.
  part = jax.lax.reduce_precision(
      part.astype(jnp.float32), info.nexp, info.nmant
  )
  return jnp.sum(jnp.square(part), axis=in_axes)


DORA = _Dora(
    name='DoRA',
    argument='use_dora',
    own=(
        _leaf.OwnLeaf(
            name='m',
            sides=('out',),
            peft=('lora_magnitude_vector', 'lora_magnitude_vector.weight'),
            plural='magnitudes',
            start=_magnitude,
            from_base=True,
        ),
    ),
    is_branch_alone=False,
    can_unfuse=False,
    fuses_whole_inputs=True,
)
