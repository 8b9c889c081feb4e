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
import dataclasses
import string

import jax
import jax.numpy as jnp

from gemma4_lora import _linears


@dataclasses.dataclass(frozen=True, kw_only=True)
class BranchEinsum:
  """The einsums of a branch.

  Attributes:
    down: Of the input and A.
    up: Of what `down` gave and B.
    slot_axis: Axis of the base's output along which projections are packed;
      None if the weight holds one projection.
  """

  down: str
  up: str
  slot_axis: int | None

  @classmethod
  def from_base(cls, eqn: str, row: _linears.Linear) -> 'BranchEinsum':
    """Derives the branch's einsums from the base's.

    Args:
      eqn: Einsum of the input and the base weight, in this order.
      row: The projection.
    """
    inputs, output = eqn.replace(' ', '').split('->')
    x, w = inputs.split(',')
    in_ = ''.join(w[axis] for axis in row.in_axes)
    out = ''.join(w[axis] for axis in row.out_axes)
    rank = next(c for c in 'r' + string.ascii_letters if c not in eqn)
    low = ''.join(c for c in x if c not in in_) + rank
    slot_axis = None
    if row.slot_axis is not None:
      slot = w[row.slot_axis]
      # From the end where an ellipsis of unknown length stands before it.
      slot_axis = output.index(slot)
      if '.' in output[:slot_axis]:
        slot_axis -= len(output)
      output = output.replace(slot, '')
    return cls(
        down=f'{x},{in_}{rank}->{low}',
        up=f'{low},{rank}{out}->{output}',
        slot_axis=slot_axis,
    )


def apply(
    eqn: BranchEinsum, x: jax.Array, a: jax.Array, b: jax.Array, scale: float
) -> jax.Array:
  """Returns `scale * (x @ A) @ B` in x's dtype.

  A and B are cast to it, so that float32 masters do not promote what follows;
  the scale goes to the smallest array.

  Args:
    eqn: The einsums.
    x: Input of the base linear.
    a: A, in its own dtype.
    b: B, in its own dtype.
    scale: Python float: alpha / rank, and the base's own `w_scale`.
  """
  low = jnp.einsum(eqn.down, x, a.astype(x.dtype)) * scale
  return jnp.einsum(eqn.up, low, b.astype(x.dtype))


def pack(
    branches: Mapping[int, jax.Array], *, num_slots: int, axis: int
) -> jax.Array:
  """Stacks branches as the base packs projections, zeros where there is none.

  Args:
    branches: Branch by slot, all of one shape; at least one.
    num_slots: How many projections the base packs.
    axis: Where the base's output has them.
  """
  zeros = jnp.zeros_like(next(iter(branches.values())))
  return jnp.stack(
      [branches.get(slot, zeros) for slot in range(num_slots)], axis=axis
  )
