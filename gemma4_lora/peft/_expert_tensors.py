"""LoRA on routed experts, in the two layouts of PEFT folders.

`stacked` is PEFT's own: one wrapper per expert tensor (`target_parameters`),
with E experts of rank r packed into two matrices:

| parameter | A | B |
|---|---|---|
| `experts.gate_up_proj` | `[E * r, D]`, row `e * r + j` | `[2F, r * E]`, column `j * E + e` |
| `experts.down_proj` | `[E * r, F]` | `[D, r * E]` |

There gate and up share one A. Ours do not: if the two differ, both are written
as one A of twice the rank, with a block-diagonal B. While B is zero, its zeros
do not show that, so the file's metadata has it (`METADATA`).

`per_expert` is what vLLM takes: each expert's projection as a module of its own,
`experts.3.gate_proj`, before vllm 0.33 `moe.experts.3.gate_proj`.
https://github.com/huggingface/peft (`ParamWrapper`, peft 0.21.2)
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from gemma4_lora.gemma4 import _linears
from gemma4_lora.peft import _branch
from gemma4_lora.targets import _scale

# Key in the metadata of the safetensors file: JSON of `{parameter: [rank of
# gate, rank of up]}`, if the two do not share A.
METADATA = 'gemma4_lora.gate_up'

_PROJECTIONS = {
    'expert_gate': 'gate_proj',
    'expert_up': 'up_proj',
    'expert_down': 'down_proj',
}


def module_names(row: _linears.Linear) -> tuple[str, ...]:
  """Returns the module of each expert, in the layout `per_expert`."""
  (num_experts,) = row.batch_shape
  name = _PROJECTIONS[row.projection]
  return tuple(
      f'layers.{row.layer}.experts.{e}.{name}' for e in range(num_experts)
  )


def wrapper(row: _linears.Linear, *, both: bool) -> str:
  """Returns the module that PEFT's wrapper of a tensor replaces.

  Args:
    row: An expert projection.
    both: Whether both tensors of the layer are wrapped. PEFT wraps in the order
      of the module's parameters: the wrapper of `down_proj` is the outer one.
  """
  module, _, parameter = row.hf_name.rpartition('.')
  return f'{module}.base_layer' if both and parameter != 'down_proj' else module


# ------------------------------- Per expert -------------------------------


def to_per_expert(lora: _branch.RowLoRA) -> Iterator[_branch.Branch]:
  """Yields the branch of each expert."""
  for e, name in enumerate(module_names(lora.row)):
    yield _branch.Branch(
        tower=lora.row.tower,
        name=name,
        module=name,
        rank=lora.rank,
        alpha=lora.alpha,
        a=lora.a[e].T,
        b=lora.b[e].T,
    )


def from_per_expert(
    row: _linears.Linear, branches: Sequence[_branch.Branch]
) -> _branch.RowLoRA:
  """Undoes `to_per_expert`: branches in the order of experts, of one rank."""
  return _branch.RowLoRA(
      row=row,
      alpha=branches[0].alpha,
      a=np.stack([x.a.T for x in branches]),
      b=np.stack([x.b.T for x in branches]),
  )


# -------------------------------- Stacked ---------------------------------


def to_stacked(
    loras: Mapping[str, _branch.RowLoRA], *, use_rslora: bool
) -> tuple[list[_branch.Branch], dict[str, list[int]]]:
  """Returns the branches of one layer.

  Args:
    loras: Leaves by projection, of any of `expert_gate`, `expert_up`,
      `expert_down`.
    use_rslora: How a scale follows from alpha and rank.

  Returns:
    Branches, and their entry of `METADATA`.
  """
  gate_up = {k: v for k, v in loras.items() if v.row.slot is not None}
  down = loras.get('expert_down')
  both = bool(gate_up) and down is not None
  branches, ranks = [], {}
  if gate_up:
    lora, halves = _join(gate_up, use_rslora=use_rslora)
    branches.append(_stack(lora, both=both))
    if halves is not None:
      ranks[lora.row.hf_name] = halves
  if down is not None:
    branches.append(_stack(down, both=both))
  return branches, ranks


def from_stacked(
    branch: _branch.Branch,
    rows: Mapping[str, _linears.Linear],
    *,
    ranks: Sequence[int] | None,
    use_rslora: bool,
) -> list[_branch.RowLoRA]:
  """Undoes `to_stacked`, for one parameter.

  Args:
    branch: The branch of `gate_up_proj` or `down_proj`.
    rows: The layer's rows that the parameter holds, by projection.
    ranks: Its entry of `METADATA`: ranks of gate and up.
    use_rslora: How a scale follows from alpha and rank.
  """
  row = next(iter(rows.values()))
  (num_experts,) = row.batch_shape
  a = branch.a.reshape(num_experts, branch.rank, -1).transpose(0, 2, 1)
  b = branch.b.reshape(-1, branch.rank, num_experts).transpose(2, 1, 0)
  if row.slot is None:
    return [_branch.RowLoRA(row=row, alpha=branch.alpha, a=a, b=b)]
  gate, up = rows['expert_gate'], rows['expert_up']
  b_gate, b_up = np.split(b, 2, axis=-1)
  halves = _halves(a, b_gate, b_up, ranks)
  if halves is None:
    return [
        _branch.RowLoRA(row=gate, alpha=branch.alpha, a=a, b=b_gate),
        _branch.RowLoRA(row=up, alpha=branch.alpha, a=a, b=b_up),
    ]
  factor = _scale.scale(branch.alpha, branch.rank, use_rslora=use_rslora)
  of_gate, of_up = slice(None, halves[0]), slice(halves[0], None)
  return [
      _branch.RowLoRA(
          row=row,
          alpha=_tidy(_scale.alpha_for(factor, rank, use_rslora=use_rslora)),
          a=a[..., part],
          b=b[:, part],
      )
      for row, rank, part, b in (
          (gate, halves[0], of_gate, b_gate),
          (up, halves[1], of_up, b_up),
      )
      if rank
  ]


def _stack(lora: _branch.RowLoRA, *, both: bool) -> _branch.Branch:
  """Packs all experts of one parameter."""
  return _branch.Branch(
      tower=lora.row.tower,
      name=lora.row.hf_name,
      module=wrapper(lora.row, both=both),
      rank=lora.rank,
      alpha=lora.alpha,
      a=lora.a.transpose(0, 2, 1).reshape(-1, lora.a.shape[1]),
      b=lora.b.transpose(2, 1, 0).reshape(lora.b.shape[2], -1),
  )


def _join(
    gate_up: Mapping[str, _branch.RowLoRA], *, use_rslora: bool
) -> tuple[_branch.RowLoRA, list[int] | None]:
  """Returns gate and up as one, `b` `[E, rank, 2F]`, and ranks if A differs."""
  gate, up = gate_up.get('expert_gate'), gate_up.get('expert_up')
  if gate is None or up is None:
    lora = gate or up
    assert lora is not None
    zeros = np.zeros_like(lora.b)
    parts = [lora.b, zeros] if up is None else [zeros, lora.b]
    return (
        _with(lora, a=lora.a, b=np.concatenate(parts, axis=-1)),
        [lora.rank, 0] if up is None else [0, lora.rank],
    )
  # One scale for both. Exact if the scales are equal, or if one is twice the
  # other.
  factor = _scale.scale(gate.alpha, gate.rank, use_rslora=use_rslora)
  of_up = _scale.scale(up.alpha, up.rank, use_rslora=use_rslora)
  b_up = up.b if of_up == factor else up.b * np.float32(of_up / factor)
  if _same_bits(gate.a, up.a):
    return _with(gate, a=gate.a, b=np.concatenate([gate.b, b_up], -1)), None
  b_gate = np.concatenate([gate.b, np.zeros_like(up.b)], axis=1)
  b_up = np.concatenate([np.zeros_like(gate.b), b_up], axis=1)
  rank = gate.rank + up.rank
  return (
      _with(
          gate,
          a=np.concatenate([gate.a, up.a], axis=-1),
          b=np.concatenate([b_gate, b_up], axis=-1),
          alpha=_scale.alpha_for(factor, rank, use_rslora=use_rslora),
      ),
      [gate.rank, up.rank],
  )


def _halves(
    a: np.ndarray,
    b_gate: np.ndarray,
    b_up: np.ndarray,
    ranks: Sequence[int] | None,
) -> tuple[int, int] | None:
  """Returns the ranks of gate and up if they do not share A, else None."""
  rank = a.shape[-1]
  if ranks is None:
    half = rank // 2
    if rank % 2 or _same_bits(a[..., :half], a[..., half:]):
      return None
    if not b_gate.any() and not b_up.any():
      return None  # Zeros do not tell.
    ranks = (half, half)
  of_gate, of_up = ranks
  if of_gate + of_up != rank:
    return None
  apart = _is_zero(b_gate[:, of_gate:]) and _is_zero(b_up[:, :of_gate])
  return (of_gate, of_up) if apart else None


def _with(lora: _branch.RowLoRA, **kwargs: Any) -> _branch.RowLoRA:
  return dataclasses.replace(lora, **kwargs)


def _same_bits(x: np.ndarray, y: np.ndarray) -> bool:
  """Whether arrays are equal; minus zero and zero differ."""
  return x.shape == y.shape and bool(np.array_equal(_bits(x), _bits(y)))


def _is_zero(x: np.ndarray) -> bool:
  return not _bits(x).any()


def _bits(x: np.ndarray) -> np.ndarray:
  return np.ascontiguousarray(x).view(np.uint32)


def _tidy(x: float) -> float:
  """Drops the rounding of a square root: 15.999999999999998 was 16."""
  rounded = float(f'{x:.12g}')
  return rounded if abs(rounded - x) <= 1e-12 * abs(x) else x
