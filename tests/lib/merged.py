"""Base weights with the branches in them, as the formulas have them.

Which axis of a weight is which is written out here a second time, by hand: the
package's own table is compared against it.
"""

import math
from typing import Any

from gemma import peft
import jax
import jax.numpy as jnp
import numpy as np

from gemma4_lora import g4
from tests.lib import training

# Letters of the weight, of its input and of its output; e: experts, which are a
# batch.
_LETTERS = {
    'q': 'ndh d nh',
    'k': 'kdh d kh',
    'v': 'kdh d kh',
    'o': 'nhd nh d',
    'gate': 'fd d f',
    'up': 'fd d f',
    'down': 'fd f d',
    'per_layer_model_projection': 'dlp d lp',
    'per_layer_input_gate': 'dp d p',
    'per_layer_projection': 'pd p d',
    'router': 'de d e',
    'expert_gate': 'efd d f',
    'expert_up': 'efd d f',
    'expert_down': 'efd f d',
}
_SLOTS = {'k': 0, 'v': 1, 'gate': 0, 'up': 1, 'expert_gate': 0, 'expert_up': 1}


def base(
    model: g4.nn.LoRA, params: Any, *, constants: Any | None = None
) -> Any:
  """Returns base parameters with each branch added into its weight.

  Under DoRA, with each output feature of the sum brought to its magnitude.
  What `modules_to_save` trains is not looked at.

  Args:
    model: The model.
    params: Its parameters.
    constants: Norms of the sums under DoRA, by name. With them sums are JAX's,
      to differentiate; without, NumPy's in float64.
  """
  xp, dtype = (np, np.float64) if constants is None else (jnp, None)
  original = peft.split_params(params).original
  flat = training.flat(params)
  leaves = training.flat(original)
  for linear in model.adapted:
    row = linear.row
    batch, letters, ins, outs = _letters(row)
    a, b, *m = (
        xp.asarray(flat[f'{row.lora_path}.{leaf}'], dtype)
        for leaf in ('abm' if model.use_dora else 'ab')
    )
    whole = xp.asarray(leaves[row.path], dtype)
    pick = _pick(row, whole.ndim)
    product = xp.einsum(f'{batch}{ins}r,{batch}r{outs}->{letters}', a, b)
    root = math.sqrt(linear.rank) if model.use_rslora else linear.rank
    part = whole[pick] + linear.alpha / root * product
    if model.use_dora:
      norm = constants[row.name] if constants else _norm(part, row)
      ratio = m[0] / norm
      part = xp.einsum(f'{letters},{batch}{outs}->{letters}', part, ratio)
    if constants is None:
      whole = np.array(whole)
      whole[pick] = part
    else:
      whole = whole.at[pick].set(part)
    leaves[row.path] = whole
  merged = jax.tree.unflatten(jax.tree.structure(original), leaves.values())
  return jax.tree.map(lambda new, old: new.astype(old.dtype), merged, original)


def norms(model: g4.nn.LoRA, values: Any) -> dict[str, np.ndarray]:
  """Returns norms of adapted weights' output features, by name.

  Args:
    model: The model.
    values: Base parameters.
  """
  leaves = training.flat(values)
  norms = {}
  for linear in model.adapted:
    whole = np.asarray(leaves[linear.row.path], np.float64)
    part = whole[_pick(linear.row, whole.ndim)]
    norms[linear.row.name] = _norm(part, linear.row)
  return norms


def _letters(row: Any) -> tuple[str, str, str, str]:
  """Returns letters of the batch, the weight, its input and its output."""
  if row.tower != 'audio' and row.projection in _LETTERS:
    weight, ins, outs = _LETTERS[row.projection].split(' ')
  else:  # A linear of Flax.
    ins = 'abc'[: len(row.in_shape)]
    outs = 'xyz'[: len(row.out_shape)]
    weight = ins + outs
  batch = 'e' if row.projection.startswith('expert_') else ''
  if row.stacked:
    batch, weight = 's', f's{weight}'
  return batch, weight, ins, outs


def _pick(row: Any, ndim: int) -> tuple[Any, ...]:
  """Returns the index of a projection in its weight."""
  batch, letters, _, _ = _letters(row)
  if ndim == len(letters):
    return ()
  return (*[slice(None)] * len(batch), _SLOTS[row.projection])


def _norm(weight: np.ndarray, row: Any) -> np.ndarray:
  batch, letters, _, outs = _letters(row)
  square = np.einsum(f'{letters},{letters}->{batch}{outs}', weight, weight)
  return np.sqrt(square)
