"""The interface of LoRA variants."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses

import jax

from gemma4_lora.gemma4 import _linears
from gemma4_lora.variants import _leaf


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
  """One call of an adapted linear.

  Attributes:
    row: The projection; for a stacked weight, the projection of one layer.
    leaves: The projection's LoRA leaves by name, in their own dtypes.
    scale: Factor of A times B.
    branch: `scale * (x @ A) @ B`, laid out as the projection's output. Includes
      the base's own factor.
    base_output: Returns the base's output for the branch's input, without a
      bias, for the projection alone.
    base_weight: Returns the whole base weight, dequantised.
    spread: Lays out `[*out]` for broadcasting against the projection's output.
  """

  row: _linears.Linear
  leaves: Mapping[str, jax.Array]
  scale: float
  branch: jax.Array
  base_output: Callable[[], jax.Array]
  base_weight: Callable[[], jax.Array]
  spread: Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
  """A kind of LoRA; this one adds the branch as it is.

  Attributes:
    name: Its usual name.
    argument: The bool of `g4.nn.LoRA` that chooses it, and the field of PEFT's
      `LoraConfig` of the same name. None for the default.
    own: Its leaves beside A and B.
    is_branch_alone: Whether it adds A times B and nothing else. Only such
      variants compute base and branch as one product, support routed experts,
      and can be mixed.
    can_unfuse: Whether `fused` with the negated change recovers the base.
    fuses_whole_inputs: Whether `fused` needs all inputs of an output feature at
      once.
  """

  name: str
  argument: str | None = None
  own: tuple[_leaf.OwnLeaf, ...] = ()
  is_branch_alone: bool = True
  can_unfuse: bool = True
  fuses_whole_inputs: bool = False

  @property
  def leaves(self) -> tuple[_leaf.Leaf, ...]:
    """All leaves of a projection, in the order in which they are made."""
    return (_leaf.A, _leaf.B, *self.own)

  @property
  def setting(self) -> str:
    """The argument that chooses it, for messages."""
    return f'{self.argument}=True'

  def delta(self, call: Call) -> jax.Array:
    """Returns the addition to the projection's output, in its dtype."""
    return call.branch

  def fused(
      self,
      part: jax.Array,
      change: jax.Array,
      own: Mapping[str, jax.Array],
      row: _linears.Linear,
  ) -> jax.Array:
    """Returns the weight equal to base and branch, `float32`.

    Args:
      part: The projection's part of the base weight, `float32`.
      change: `scale * A @ B` with the part's axes.
      own: The leaves beside A and B, by name.
      row: The projection.
    """
    return part + change
