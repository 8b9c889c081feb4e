"""PiSSA and OLoRA: A and B that take over a part of the base weight."""

from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from gemma4_lora import _trees
from gemma4_lora.gemma4 import _linears
from gemma4_lora.gemma4 import _weights
from gemma4_lora.nn import _lora
from gemma4_lora.nn import _views
from gemma4_lora.nn.branches import _init
from gemma4_lora.nn.branches import _pending
from gemma4_lora.nn.from_base import _low_rank_fit


def init_from_base(
    model: _lora.LoRA, params: Mapping[str, Any]
) -> dict[str, Any]:
  """Sets A and B from the base weights, and subtracts `scale * A @ B` from
  these.

  For `g4.nn.LoRA(init_lora_weights='pissa')` (https://arxiv.org/abs/2404.02948) and
  `'olora'` (https://arxiv.org/abs/2406.01775), once the base is restored:

  ```python
  params = g4.nn.init_from_base(model, params)
  ```

  In a config, `g4.ckpts.SkipLoRA4(wrapped=…, model=cfg.ref.model)` does it. The
  model computes what the base did, up to the rounding of the changed base
  weights to their dtype. One weight at a time is held in float32.

  Args:
    model: A `g4.nn.LoRA`.
    params: Its parameters, nested: the base restored, A and B as `model.init`
      left them.

  Returns:
    Parameters of the same structure, shapes, dtypes and shardings; `params`
    itself where the model's `init_lora_weights=` does not read the base.

  Raises:
    ValueError: `params` lacks a leaf, or A and B were set before: the base has
      changed already.
  """
  if not _init.is_from_base(model.init_lora_weights):
    return dict(params)
  views = _views.linears(model, params)
  for name, view in views.items():
    if not _pending.is_pending(view.lora_a):
      raise ValueError(
          f'g4.nn.init_from_base: A of {name} has values already. It is called'
          ' once, on what model.init made: the base weights change with it.'
      )
  # New dicts of the same arrays.
  new: dict[str, Any] = jax.tree.map(lambda x: x, dict(params))
  for step in _steps(model):
    row = step.row
    weight = _trees.get(new, row.path)
    a, b, weight = step.take_over(weight)
    for path, value in {
        f'{row.lora_path}.a': a,
        f'{row.lora_path}.b': b,
        row.path: weight,
    }.items():
      _trees.put_like(new, path, value)
  return new


def residual(model: _lora.LoRA, path: str, weight: jax.Array) -> jax.Array:
  """Returns one base leaf as `init_from_base` changes it.

  Args:
    model: A `g4.nn.LoRA`.
    path: The leaf's path. One without LoRA stays as it is.
    weight: Its released value, in the dtype of the model.
  """
  if _init.is_from_base(model.init_lora_weights):
    for step in _steps(model):
      if step.row.path == path:
        _, _, new = step.take_over(weight)
        weight = new.reshape(weight.shape).astype(weight.dtype)
  return weight


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Step:
  """Splits the base weight of one projection into A, B and the rest.

  Attributes:
    index: Number of the projection: seeds a randomised SVD.
    row: The projection.
    rank: Rank of A and B.
    scale: What A times B is multiplied by.
    init: See `init_lora_weights=` of `g4.nn.LoRA`.
  """

  index: int
  row: _linears.Linear
  rank: int
  scale: float
  init: str

  def take_over(
      self, weight: jax.Array
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns A, B, and the weight without them."""
    return _take_over(
        weight,
        jax.random.key(self.index),
        row=_weights.nameless(self.row),
        rank=self.rank,
        init=self.init,
        scale=self.scale,
    )


def _steps(model: _lora.LoRA) -> Iterator[_Step]:
  for index, linear in enumerate(model.adapted):
    yield _Step(
        index=index,
        row=linear.row,
        rank=linear.rank,
        scale=linear.scale(use_rslora=model.use_rslora),
        init=model.init_lora_weights,
    )


@functools.partial(jax.jit, static_argnames=('row', 'rank', 'init', 'scale'))
def _take_over(
    weight: jax.Array,
    key: jax.Array,
    *,
    row: _linears.Linear,
    rank: int,
    init: str,
    scale: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns A, B and the weight without `scale * A @ B`."""
  if row.stacked:  # Layer by layer: one at a time is held in float32.
    take_over = functools.partial(
        _take_over, row=row.one_layer, rank=rank, init=init, scale=scale
    )
    keys = jax.random.split(key, len(row.layers))
    return jax.lax.map(lambda layer: take_over(*layer), (weight, keys))
  part = _weights.part(weight, row)
  matrix = _weights.to_matrix(part, row)
  if init == 'olora':
    a, b = _olora(matrix, rank)
  else:
    a, b = _low_rank_fit.fit(
        matrix, rank, key, num_iters=_init.num_iters(init), scale=scale
    )
  rest = matrix - scale * jnp.matmul(a, b, precision='highest')
  return (
      a,
      b,
      _weights.with_part(weight, row, _weights.from_matrix(rest, row, part)),
  )


def _olora(matrix: jax.Array, rank: int) -> tuple[jax.Array, jax.Array]:
  """The first `rank` columns of Q and rows of R, of the weight `[out, in]`.

  The first columns of the weight determine those columns of Q, and the rows are
  the weight's coordinates in them. The rest is not needed.
  """
  q, _ = jnp.linalg.qr(matrix[:rank].T)
  return jnp.matmul(matrix, q, precision='highest'), q.T
