"""One leaf of a LoRA variant: its axes, its start, its name in PEFT's files."""

from collections.abc import Callable
import dataclasses
import math
from typing import Literal

import jax

from gemma4_lora.gemma4 import _linears

Side = Literal['in', 'out', 'rank']


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leaf:
  """One leaf at `….lora.<projection>.<name>`.

  Attributes:
    name: Its key in the parameters.
    sides: Its axes in order, after those of the batch (experts, or the layers
      of a stacked weight). A is `('in', 'rank')`.
    peft: Suffixes of PEFT's tensor names. The first is written; the others are
      also read.
  """

  name: str
  sides: tuple[Side, ...]
  peft: tuple[str, ...]

  def axes(self, row: _linears.Linear) -> tuple[int | None, ...]:
    """Returns the axis of the base weight behind each axis; None for the rank.

    Args:
      row: The projection.
    """
    by_side = {'in': row.in_axes, 'out': row.out_axes, 'rank': (None,)}
    return (*row.batch_axes, *(a for side in self.sides for a in by_side[side]))

  def shape(self, row: _linears.Linear, rank: int) -> tuple[int, ...]:
    """Returns the shape, `*batch *sides`."""
    return tuple(
        rank if axis is None else row.shape[axis] for axis in self.axes(row)
    )

  def sizes(self, row: _linears.Linear, rank: int) -> tuple[int, ...]:
    """Returns the size of each side, all its axes as one: A is `(in, rank)`."""
    by_side = {
        'in': math.prod(row.in_shape),
        'out': math.prod(row.out_shape),
        'rank': rank,
    }
    return tuple(by_side[side] for side in self.sides)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnLeaf(Leaf):
  """A leaf that one variant has beside A and B.

  Attributes:
    plural: Plural of its name, for messages.
    start: Returns the leaf at step 0, `float32[*batch, *sides]`, from the whole
      base weight and the projection. It is kept in float32.
    from_base: Whether `start` reads the base weight. Such a leaf must be set
      again after the base is restored.
  """

  plural: str
  start: Callable[[jax.Array, _linears.Linear], jax.Array]
  from_base: bool


# `init_lora_weights=` decides how they start.
A = Leaf(name='a', sides=('in', 'rank'), peft=('lora_A.weight',))
B = Leaf(name='b', sides=('rank', 'out'), peft=('lora_B.weight',))
