"""The low-rank branch of one linear, as einsums.

A linear that gemma writes as an einsum of an input and a weight gets, for each
projection that its weight holds, a branch `scale * (x @ A) @ B` whose einsums
are derived from gemma's own:

| einsum of the base | A, B | branch |
|---|---|---|
| `BTD,NDH->BTNH` | `Dr`, `rNH` | `BTD,Dr->BTr`, `BTr,rNH->BTNH` |
| `BTNH,NHD->BTD` | `NHr`, `rD` | `BTNH,NHr->BTr`, `BTr,rD->BTD` |
| `BSD,CKDH->CBSKH`, v | `Dr`, `rKH` | `BSD,Dr->BSr`, `BSr,rKH->BSKH`, at C = 1 |
| `...F,NHF->...NH`, gate | `Fr`, `rH` | `...F,Fr->...r`, `...r,rH->...H`, at N = 0 |
"""

from collections.abc import Mapping
import string

import jax
import jax.numpy as jnp

from gemma4_lora.gemma4 import _linears


def apply(
    eqn: str,
    row: _linears.Linear,
    x: jax.Array,
    a: jax.Array,
    b: jax.Array,
    *,
    scale: float,
) -> jax.Array:
  """Returns `scale * (x @ A) @ B` in x's dtype, laid out as the base's output.

  A and B are cast to that dtype, so that float32 leaves do not promote later
  arrays. The scale is multiplied into the smallest array.

  Args:
    eqn: Einsum of the base: of its input and its weight, in this order.
    row: The projection.
    x: Input of the base.
    a: A, in its own dtype.
    b: B, in its own dtype.
    scale: Python float: alpha / rank, and the base's own `w_scale`.

  Returns:
    The branch, without the axis along which the base packs projections.
  """
  _, w_axes, out_axes = split(eqn)
  gained = ''.join(w_axes[axis] for axis in row.out_axes)
  if row.slot_axis is not None:
    out_axes = out_axes.replace(w_axes[row.slot_axis], '')
  return jnp.einsum(
      f'{_low_axes(eqn, row)},{_rank_axis(eqn)}{gained}->{out_axes}',
      apply_a(eqn, row, x, a) * scale,
      b.astype(x.dtype),
  )


def apply_a(
    eqn: str, row: _linears.Linear, x: jax.Array, a: jax.Array
) -> jax.Array:
  """Returns `x @ A`: x's axes, except for what A contracts, and the rank.

  Args:
    eqn: Einsum of the base.
    row: The projection.
    x: Input of the base.
    a: A, in its own dtype.
  """
  x_axes, w_axes, _ = split(eqn)
  contracted = ''.join(w_axes[axis] for axis in row.in_axes)
  return jnp.einsum(
      f'{x_axes},{contracted}{_rank_axis(eqn)}->{_low_axes(eqn, row)}',
      x,
      a.astype(x.dtype),
  )


def apply_grouped(
    x: jax.Array,
    a: jax.Array,
    b: jax.Array,
    sizes: jax.Array,
    *,
    scale: float,
) -> jax.Array:
  """Returns `scale * (x @ A) @ B` in x's dtype, A and B of each row's group.

  Args:
    x: `[M, in]`, rows sorted by group.
    a: `[E, in, rank]`, in its own dtype.
    b: `[E, rank, out]`, in its own dtype.
    sizes: i32`[E]`, rows per group; they sum to M.
    scale: Python float: alpha / rank.

  Returns:
    `[M, out]`
  """
  low = jax.lax.ragged_dot(x, a.astype(x.dtype), sizes)
  return jax.lax.ragged_dot(low * scale, b.astype(x.dtype), sizes)


def project(
    eqn: str, row: _linears.Linear, x: jax.Array, part: jax.Array
) -> jax.Array:
  """Returns the base's output for one projection alone.

  Args:
    eqn: Einsum of the base.
    row: The projection.
    x: Input of the base.
    part: The projection's part of the base weight.
  """
  x_axes, w_axes, out_axes = split(eqn)
  if row.slot_axis is not None:
    slot = w_axes[row.slot_axis]
    w_axes, out_axes = w_axes.replace(slot, ''), out_axes.replace(slot, '')
  return jnp.einsum(f'{x_axes},{w_axes}->{out_axes}', x, part)


def spread(eqn: str, row: _linears.Linear, features: jax.Array) -> jax.Array:
  """Lays `[*out]` out for broadcasting against a projection's output.

  For `BTD,NDH->BTNH`, `[N, H]` becomes `[1, 1, N, H]`.

  Args:
    eqn: Einsum of the base.
    row: The projection.
    features: One value per output feature.
  """
  _, w_axes, out_axes = split(eqn)
  gained = ''.join(w_axes[axis] for axis in row.out_axes)
  if row.slot_axis is not None:
    out_axes = out_axes.replace(w_axes[row.slot_axis], '')
  # The axes of an ellipsis come first, where broadcasting adds axes.
  out_axes = out_axes.removeprefix('...')
  kept = ''.join(c for c in out_axes if c in gained)
  features = jnp.einsum(f'{gained}->{kept}', features)
  return jnp.expand_dims(
      features, [i for i, c in enumerate(out_axes) if c not in gained]
  )


def output_slot_axis(eqn: str, slot_axis: int) -> int:
  """Returns where the base's output has the axis of slots.

  `BSD,CKDH->CBSKH` has it at 0, `...F,NHF->...NH` at -2: behind an ellipsis of
  unknown length it is counted from the end.

  Args:
    eqn: Einsum of the base.
    slot_axis: Axis of the weight that has the slots.
  """
  _, w_axes, out_axes = split(eqn)
  axis = out_axes.index(w_axes[slot_axis])
  return axis - len(out_axes) if '.' in out_axes[:axis] else axis


def stack_slots(
    branches: Mapping[int | None, jax.Array], *, num_slots: int, axis: int
) -> jax.Array:
  """Stacks branches by slot as the base does, zeros where there is none.

  Args:
    branches: Branch by slot, all of one shape; at least one.
    num_slots: How many slots the base has.
    axis: Where the base's output has them.
  """
  zeros = jnp.zeros_like(next(iter(branches.values())))
  return jnp.stack(
      [branches.get(slot, zeros) for slot in range(num_slots)], axis=axis
  )


def take_slot(output: jax.Array, *, slot: int | None, axis: int) -> jax.Array:
  """Returns the output of one slot."""
  assert slot is not None
  return jax.lax.index_in_dim(output, slot, axis, keepdims=False)


def _rank_axis(eqn: str) -> str:
  """Returns a letter for the rank."""
  return next(c for c in 'r' + string.ascii_letters if c not in eqn)


def _low_axes(eqn: str, row: _linears.Linear) -> str:
  x_axes, w_axes, _ = split(eqn)
  contracted = ''.join(w_axes[axis] for axis in row.in_axes)
  return ''.join(c for c in x_axes if c not in contracted) + _rank_axis(eqn)


def split(eqn: str) -> tuple[str, str, str]:
  """Returns the axes of input, weight and output."""
  inputs, output = eqn.replace(' ', '').split('->')
  x, w = inputs.split(',')
  return x, w, output
