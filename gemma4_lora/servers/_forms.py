"""Brings a LoRA into the form that a server reads, with the same product."""

import collections
from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses

import numpy as np

from gemma4_lora.gemma4 import _upstream
from gemma4_lora.peft import _branch
from gemma4_lora.servers import _server
from gemma4_lora.targets import _scale

_KEYS, _VALUES = '.self_attn.k_proj', '.self_attn.v_proj'


def formed(
    loras: Sequence[_branch.RowLoRA],
    server: _server.Server,
    *,
    use_rslora: bool,
) -> tuple[list[_branch.RowLoRA], bool]:
  """Returns the LoRA of each row with ranks and scales as a server reads them.

  Args:
    loras: The LoRA of each row.
    server: The server.
    use_rslora: How their scales follow from alpha and rank.

  Returns:
    The same products, and whether their scales still follow so. Where a scale
    goes into B, it is exact if it is a power of two, and else rounded once.
  """
  if not server.one_scale or not loras:
    return list(loras), use_rslora
  scales = [_scale.scale(x.alpha, x.rank, use_rslora=use_rslora) for x in loras]
  if server.one_rank:
    most = max(x.rank for x in loras)
    loras = [_padded(x, most) for x in loras]
  # The commonest one keeps its B.
  alphas = [
      _scale.alpha_for(scale, lora.rank, use_rslora=False)
      for scale, lora in zip(scales, loras, strict=True)
  ]
  (alpha, _), *_ = collections.Counter(alphas).most_common(1)
  return [
      dataclasses.replace(
          lora,
          alpha=alpha,
          b=lora.b if own == alpha else lora.b * np.float32(own / alpha),
      )
      for lora, own in zip(loras, alphas, strict=True)
  ], False


def with_values(
    branches: Iterable[_branch.Branch],
    server: _server.Server,
    config: _upstream.TransformerConfig,
) -> list[_branch.Branch]:
  """Returns branches where that of keys stands for the values, too.

  For servers that hold a weight that gives both as two: they would add the LoRA
  to the keys alone.

  Args:
    branches: The branches.
    server: The server.
    config: The model's config.
  """
  branches = list(branches)
  if not server.values_apart:
    return branches
  both = {
      f'layers.{i}{_KEYS}'
      for i in range(config.num_layers)
      if _upstream.k_is_v(config, i)
  }
  return branches + [
      dataclasses.replace(x, name=name, module=name)
      for x in branches
      if x.name in both
      for name in [x.name.replace(_KEYS, _VALUES)]
  ]


def _padded(lora: _branch.RowLoRA, rank: int) -> _branch.RowLoRA:
  """Returns A and B of a rank, with zeros behind their own."""
  more = rank - lora.rank
  if not more:
    return lora
  batch = len(lora.row.batch_shape) + lora.row.stacked
  a_pads = [(0, 0)] * (lora.a.ndim - 1) + [(0, more)]
  b_pads = [(0, 0)] * lora.b.ndim
  b_pads[batch] = (0, more)
  return dataclasses.replace(
      lora, a=np.pad(lora.a, a_pads), b=np.pad(lora.b, b_pads)
  )
