"""LoRA of a row, in our form, and of a module, in PEFT's."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses

import numpy as np

from gemma4_lora import variants
from gemma4_lora.gemma4 import _linears


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowLoRA:
  """LoRA leaves of one row of the table, float32.

  Attributes:
    row: The projection.
    alpha: Numerator of the scale.
    a: `[*batch, *in, rank]`.
    b: `[*batch, rank, *out]`.
    own: Leaves that the variant has beside them, by name.
  """

  row: _linears.Linear
  alpha: float
  a: np.ndarray
  b: np.ndarray
  own: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

  @property
  def rank(self) -> int:
    return self.a.shape[-1]

  @property
  def leaves(self) -> dict[str, np.ndarray]:
    """All of them, by name."""
    return {'a': self.a, 'b': self.b, **self.own}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Branch:
  """What a PEFT folder holds of one module, or of one parameter of experts.

  Attributes:
    tower: The tower of the module: `'text'`, `'vision'` or `'audio'`.
    name: Below the language model (or, of a tower, below the model around it):
      `layers.0.self_attn.q_proj`. Targets and patterns are matched with it.
    module: The same, except for parameters: the module that PEFT's wrapper
      replaces, `layers.0.experts.base_layer`.
    rank: The configured rank; for stacked experts, the rank of each expert.
    alpha: Numerator of the scale.
    a: `[rank, in]`; of stacked experts `[experts * rank, in]`.
    b: `[out, rank]`; of stacked experts `[out, rank * experts]`.
    own: Leaves that the variant has beside them, by name, with their sides
      reversed too.
  """

  tower: str
  name: str
  module: str
  rank: int
  alpha: float
  a: np.ndarray
  b: np.ndarray
  own: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

  @property
  def leaves(self) -> dict[str, np.ndarray]:
    """All of them, by name."""
    return {'a': self.a, 'b': self.b, **self.own}

  @property
  def is_parameter(self) -> bool:
    return self.name != self.module


def from_row(lora: RowLoRA, variant: variants.Variant) -> Iterator[Branch]:
  """Yields one branch, or one per layer of a stacked weight. Not experts."""
  row = lora.row
  for index, name in enumerate(row.hf_names):
    leaves = {
        leaf.name: _layer(lora.leaves[leaf.name], row, index)
        .reshape(leaf.sizes(row, lora.rank))
        .T
        for leaf in variant.leaves
    }
    a, b = leaves.pop('a'), leaves.pop('b')
    yield Branch(
        tower=row.tower,
        name=name,
        module=name,
        rank=lora.rank,
        alpha=lora.alpha,
        a=a,
        b=b,
        own=leaves,
    )


def to_row(
    row: _linears.Linear,
    branches: Sequence[Branch],
    variant: variants.Variant,
) -> RowLoRA:
  """Undoes `from_row`.

  Args:
    row: The row of a linear other than experts.
    branches: One, or one per layer of a stacked weight: of one rank and alpha.
    variant: The variant of the branches.
  """
  rank = branches[0].rank
  leaves = {
      leaf.name: np.stack([x.leaves[leaf.name].T for x in branches]).reshape(
          leaf.shape(row, rank)
      )
      for leaf in variant.leaves
  }
  a, b = leaves.pop('a'), leaves.pop('b')
  return RowLoRA(row=row, alpha=branches[0].alpha, a=a, b=b, own=leaves)


def _layer(array: np.ndarray, row: _linears.Linear, index: int) -> np.ndarray:
  return array[index] if row.stacked else array
