"""How several LoRAs become one: the methods of PEFT's `add_weighted_adapter`.

* `cat`: all of A and B, one behind the other. The product is exactly the weighted
  sum; the rank is the sum of theirs.
* `svd`: the closest product of a rank to that sum.
* `linear`: weighted sums of A, and of B. Not the sum of the products.
* `ties`: the largest entries of each A and B, where most have one sign
  (https://arxiv.org/abs/2306.01708).
* `magnitude_prune`: the largest entries of each, summed.
* `dare_linear`, `dare_ties`: entries by chance, made larger for those that are left
  out (https://arxiv.org/abs/2311.03099).
* with `_svd`: the same on the products of A and B, then the closest product of a
  rank.

https://github.com/huggingface/peft/blob/main/src/peft/utils/merge_utils.py
"""

from collections.abc import Sequence
import dataclasses
import math
import typing
from typing import Literal

import numpy as np

from gemma4_lora.targets import _rule

Method = Literal[
    'cat',
    'linear',
    'svd',
    'ties',
    'ties_svd',
    'dare_linear',
    'dare_linear_svd',
    'dare_ties',
    'dare_ties_svd',
    'magnitude_prune',
    'magnitude_prune_svd',
]
METHODS: tuple[str, ...] = typing.get_args(Method)
MajoritySign = Literal['total', 'frequency']
MAJORITY_SIGNS: tuple[str, ...] = typing.get_args(MajoritySign)
_SVD = '_svd'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
  """A LoRA of one matrix, or of several alike.

  Attributes:
    a: f32[*batch, in, rank].
    b: f32[*batch, rank, out].
    scale: What its product is multiplied by.
    weight: Its share.
  """

  a: np.ndarray
  b: np.ndarray
  scale: float
  weight: float


def needs_density(method: str) -> bool:
  """Whether a method leaves out entries."""
  return method.removesuffix(_SVD) not in ('cat', 'linear', 'svd')


def has_rank(method: str) -> bool:
  """Whether a method gives any rank that is asked for."""
  return method.endswith('svd')


def check(
    method: str,
    *,
    density: float | None,
    majority_sign: str,
    rank: int | None,
) -> None:
  """Raises ValueError for arguments that are wrong, or that a method has not."""
  who = 'LoRAMix.merged'
  for name, value, choices in (
      ('method', method, METHODS),
      ('majority_sign', majority_sign, MAJORITY_SIGNS),
  ):
    if value not in choices:
      raise ValueError(
          f'{who}({name}=...) takes one of {list(choices)}. Got: {value!r}'
      )
  if needs_density(method):
    if density is None or not 0 < density <= 1:
      raise ValueError(
          f'{who}: method={method!r} takes a density above 0 and up to 1: the'
          f' share of entries that is kept. Got: density={density}'
      )
  elif density is not None:
    raise ValueError(f'{who}: method={method!r} has no density={density}.')
  if rank is None:
    return
  if not has_rank(method):
    raise ValueError(
        f'{who}: method={method!r} has no rank={rank}: only methods that end'
        ' with svd have.'
    )
  _rule.check_rank(rank)


def mixed(
    parts: Sequence[Part],
    *,
    method: str,
    density: float,
    majority_sign: str,
    rank: int | None,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns A and B of the mix, whose scale is 1.

  Args:
    parts: One or more; of one rank, unless `method` is `cat` or ends with `svd`.
    method: One of `METHODS`.
    density: The share of entries that is kept.
    majority_sign: By which the sign of most is found.
    rank: That of a closest product; default: the largest of the parts'.
    rng: For `dare_…`.
  """
  if method == 'cat':
    a = [part.a for part in parts]
    b = [part.b * np.float32(part.weight * part.scale) for part in parts]
    return np.concatenate(a, axis=-1), np.concatenate(b, axis=-2)
  weights = [part.weight for part in parts]
  if has_rank(method):
    products = [np.float32(x.scale) * (x.a @ x.b) for x in parts]
    kind = method.removesuffix(_SVD)
    total = _combined(products, weights, kind, density, majority_sign, rng)
    return _closest(total, rank or max(part.a.shape[-1] for part in parts))
  # Half of each weight in A, half in B, and the sign in A alone.
  factors = [part.weight * part.scale for part in parts]
  roots = [math.sqrt(abs(x)) for x in factors]
  signed = [math.copysign(x, y) for x, y in zip(roots, factors, strict=True)]
  settings = method, density, majority_sign, rng
  a = _combined([part.a for part in parts], signed, *settings)
  return a, _combined([part.b for part in parts], roots, *settings)


def _combined(
    arrays: Sequence[np.ndarray],
    weights: Sequence[float],
    kind: str,
    density: float,
    majority_sign: str,
    rng: np.random.Generator,
) -> np.ndarray:
  """Returns one array of several."""
  if kind.startswith('dare'):
    arrays = [_by_chance(x, density, rng) for x in arrays]
  elif kind not in ('linear', 'svd'):
    arrays = [_largest(x, density) for x in arrays]
  stacked = np.stack(arrays)
  shares = np.asarray(weights, np.float32).reshape(-1, *(1,) * arrays[0].ndim)
  if not kind.endswith('ties'):
    return (stacked * shares).sum(0)
  signs = np.sign(stacked)
  votes = stacked if majority_sign == 'total' else signs
  agrees = signs == np.where(votes.sum(0) >= 0, 1, -1)
  return (stacked * shares * agrees).sum(0) / np.maximum(agrees.sum(0), 1)


def _largest(array: np.ndarray, density: float) -> np.ndarray:
  """Returns an array without all but its largest entries."""
  count = int(density * array.size)
  order = np.argsort(-np.abs(array), axis=None, kind='stable')
  kept = np.zeros(array.size, bool)
  kept[order[:count]] = True
  return array * kept.reshape(array.shape)


def _by_chance(
    array: np.ndarray, density: float, rng: np.random.Generator
) -> np.ndarray:
  kept = rng.random(array.shape) < density
  return array * kept / np.float32(density)


def _closest(product: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns A and B of a rank, whose product is as close as any."""
  u, s, vh = np.linalg.svd(product, full_matrices=False)
  a = u[..., :rank] * s[..., None, :rank]
  b = vh[..., :rank, :]
  # A matrix that has no such rank: nothing behind it.
  more = rank - a.shape[-1]
  if more > 0:
    a = np.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, more)])
    b = np.pad(b, [(0, 0)] * (b.ndim - 2) + [(0, more), (0, 0)])
  return a.astype(np.float32), b.astype(np.float32)
