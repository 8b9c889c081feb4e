"""LoRA of a row, as we keep it, and of a module, as PEFT does."""

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import math

import numpy as np

from gemma4_lora.gemma4 import _linears


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowLoRA:
  """LoRA leaves of one row of the table, float32.

  Attributes:
    row: The projection.
    alpha: Numerator of the scale.
    a: `[*batch, *in, rank]`.
    b: `[*batch, rank, *out]`.
    m: DoRA's magnitude, `[*out]`, or None.
  """

  row: _linears.Linear
  alpha: float
  a: np.ndarray
  b: np.ndarray
  m: np.ndarray | None = None

  @property
  def rank(self) -> int:
    return self.a.shape[-1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Branch:
  """What a PEFT folder holds of one module, or of one parameter of experts.

  Attributes:
    tower: Where it is.
    name: Below the language model (or, of a tower, below the model around it):
      `layers.0.self_attn.q_proj`. What targets and patterns are matched with.
    module: The same, but for parameters: the module in whose place PEFT's
      wrapper stands, `layers.0.experts.base_layer`.
    rank: As configured. Of stacked experts, that of each expert.
    alpha: Numerator of the scale.
    a: `[rank, in]`; of stacked experts `[experts * rank, in]`.
    b: `[out, rank]`; of stacked experts `[out, rank * experts]`.
    m: DoRA's magnitude, `[out]`, or None.
  """

  tower: str
  name: str
  module: str
  rank: int
  alpha: float
  a: np.ndarray
  b: np.ndarray
  m: np.ndarray | None = None

  @property
  def is_parameter(self) -> bool:
    return self.name != self.module


def scale(alpha: float, rank: int, *, use_rslora: bool) -> float:
  """What A times B is multiplied by."""
  return alpha / (math.sqrt(rank) if use_rslora else rank)


def alpha_for(factor: float, rank: int, *, use_rslora: bool) -> float:
  """Inverse of `scale`."""
  return factor * (math.sqrt(rank) if use_rslora else rank)


def from_row(lora: RowLoRA) -> Iterator[Branch]:
  """Yields one branch, or one per layer of a stacked weight. Not of experts."""
  row = lora.row
  stacked = row.stacked
  for index, name in enumerate(row.hf_names):
    a = lora.a[index] if stacked else lora.a
    b = lora.b[index] if stacked else lora.b
    m = lora.m[index] if stacked and lora.m is not None else lora.m
    yield Branch(
        tower=row.tower,
        name=name,
        module=name,
        rank=lora.rank,
        alpha=lora.alpha,
        a=a.reshape(-1, lora.rank).T,
        b=b.reshape(lora.rank, -1).T,
        m=None if m is None else m.reshape(-1),
    )


def to_row(row: _linears.Linear, branches: Sequence[Branch]) -> RowLoRA:
  """Undoes `from_row`.

  Args:
    row: Not of experts.
    branches: One, or one per layer of a stacked weight: of one rank and alpha.
  """
  a_shape, b_shape = row.lora_shapes(branches[0].rank)
  ms = [x.m for x in branches if x.m is not None]
  m_shape = (*row.batch_shape, *row.out_shape)
  return RowLoRA(
      row=row,
      alpha=branches[0].alpha,
      a=np.stack([x.a.T for x in branches]).reshape(a_shape),
      b=np.stack([x.b.T for x in branches]).reshape(b_shape),
      m=np.stack(ms).reshape(m_shape) if ms else None,
  )
