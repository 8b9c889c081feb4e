"""How much each projection's LoRA changes its weight."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from gemma import peft
import jax
import jax.numpy as jnp
import numpy as np

from gemma4_lora import _trees
from gemma4_lora.gemma4 import _rows
from gemma4_lora.gemma4 import _weights
from gemma4_lora.nn import _lora
from gemma4_lora.quant import _arrays


@dataclasses.dataclass(frozen=True, kw_only=True)
class Effect:
  """The trained change of one weight, relative to the weight.

  Attributes:
    name: `layer_0.attn.q`; for a part trained in full, its own name.
    kind: The same for all layers: `layer_*.attn.q`.
    norm: Frobenius norm of scale · B·A, or of the copy's difference from the
      base.
    relative: The same, relative to the base weight's norm; None without base.
    num_matrices: How many experts or stacked layers it has; 1 else.
    num_zero: How many of them it does not change.
  """

  name: str
  kind: str
  norm: float
  relative: float | None
  num_matrices: int = 1
  num_zero: int = 0

  @property
  def num_parts(self) -> int:
    """The former name of `num_matrices`."""
    return self.num_matrices


def effects(
    model: _lora.LoRA, base: Mapping[str, Any], lora: Mapping[str, Any]
) -> tuple[Effect, ...]:
  """Returns the effect of each adapted projection and each copy.

  Args:
    model: A `g4.nn.LoRA`.
    base: The base, nested, or empty.
    lora: All of the model's LoRA leaves.
  """
  has_base = bool(jax.tree.leaves(base))
  params = peft.merge_params(dict(base), dict(lora)) if has_base else lora
  out = []
  for linear in model.adapted:
    row = linear.row
    leaves = _trees.get(lora, row.lora_path)
    num_batch = len(row.batch_axes)
    squares = np.asarray(_squares(leaves['a'], leaves['b'], num_batch))
    scale = linear.scale(use_rslora=model.use_rslora)
    norm = abs(scale) * float(np.sqrt(np.sum(squares)))
    size = _size(_trees.get(params, row.path), row) if has_base else None
    out.append(
        Effect(
            name=row.name,
            kind=row.starred(row.name),
            norm=norm,
            relative=norm / size if size else None,
            num_matrices=squares.size,
            num_zero=int(np.sum(squares == 0)),
        )
    )
  for part in model.saved if has_base else ():
    weight = _weights.part(_trees.get(params, part.row.path), part.row)
    weight = weight.astype(jnp.float32)
    norm = float(jnp.linalg.norm(_trees.get(lora, part.path) - weight))
    size = float(jnp.linalg.norm(weight))
    out.append(
        Effect(
            name=part.row.name,
            kind=part.row.starred(part.row.name),
            norm=norm,
            relative=norm / size if size else None,
            num_zero=int(norm == 0),
        )
    )
  return tuple(out)


def _squares(a: Any, b: Any, num_batch: int) -> jax.Array:
  """Returns ‖A·B‖² of each expert or layer, without the product.

  It is the sum over AᵀA and BBᵀ, whose sides are the rank.
  """
  a, b = jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)
  batch, rank = a.shape[:num_batch], a.shape[-1]
  count = int(np.prod(batch))
  a = a.reshape(count, -1, rank)
  b = b.reshape(count, rank, -1)
  grams = jnp.einsum('nir,nis->nrs', a, a, precision='highest')
  others = jnp.einsum('nro,nso->nrs', b, b, precision='highest')
  return jnp.maximum(jnp.einsum('nrs,nrs->n', grams, others), 0)


def _size(weight: Any, row: _rows.Row) -> float:
  part = _weights.part(_arrays.dense(weight, jnp.float32), row)
  return float(jnp.sqrt(jnp.sum(jnp.square(part.astype(jnp.float32)))))
