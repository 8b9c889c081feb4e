"""The factor of the product of A and B."""

import math


def scale(alpha: float, rank: int, *, use_rslora: bool) -> float:
  """Returns `alpha / rank`, or for rsLoRA `alpha / sqrt(rank)`."""
  return alpha / _divisor(rank, use_rslora)


def alpha_for(factor: float, rank: int, *, use_rslora: bool) -> float:
  """Returns the alpha whose `scale` is `factor`."""
  return factor * _divisor(rank, use_rslora)


def _divisor(rank: int, use_rslora: bool) -> float:
  return math.sqrt(rank) if use_rslora else rank
