"""The LoRA of a `g4.nn.LoRA` on the host, row by row."""

from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

from absl import logging
import jax
import numpy as np

from gemma4_lora import _trees
from gemma4_lora.nn import _lora
from gemma4_lora.nn.branches import _init
from gemma4_lora.nn.branches import _pending
from gemma4_lora.peft import _branch


def saved_init(model: _lora.LoRA, *, who: str) -> str:
  """Returns the start that a file should name, and warns of LoftQ.

  A and B of LoftQ are plain ones on the quantised base. In PEFT, its name would
  quantise the base that is there once more.

  Args:
    model: A `g4.nn.LoRA`.
    who: What asks, for the warning.
  """
  if not _init.is_loftq(model.init_lora_weights):
    return model.init_lora_weights
  logging.warning(
      '%s: init_lora_weights=%r: this LoRA makes up for what quantising the base'
      ' lost, and is right on the base as the run quantised it alone:'
      ' gemma4_lora export --format=hf_base writes that.',
      who,
      model.init_lora_weights,
  )
  return 'default'


def row_loras(
    model: _lora.LoRA, params: Mapping[str, Any], *, who: str
) -> Iterator[_branch.RowLoRA]:
  """Yields the leaves of each adapted row, float32 on the host.

  Args:
    model: A `g4.nn.LoRA`.
    params: Its parameters, nested; the LoRA leaves are enough.
    who: What asks, for messages.

  Raises:
    ValueError: `params` is not the model's, or has NaN.
  """
  for linear in model.adapted:
    row = linear.row
    leaves = _trees.get(params, row.lora_path)
    shapes = linear.shapes
    if set(leaves) != set(shapes):
      raise ValueError(
          f'{who}: params has {sorted(leaves)} at {row.lora_path}, and the'
          f' model {sorted(shapes)}. Were they made by this model.init?'
      )
    arrays = {}
    for name, shape in shapes.items():
      array = np.asarray(jax.device_get(leaves[name])).astype(np.float32)
      if array.shape != shape:
        raise ValueError(
            f'{who}: {row.lora_path}.{name} is {array.shape} in params and'
            f' {shape} in the model. Were they made by this model.init?'
        )
      arrays[name] = array
    problem = _pending.problem(
        {(row.lora_path, name): array for name, array in arrays.items()}
    )
    if problem:
      raise ValueError(f'{who}: {problem}')
    a, b = arrays.pop('a'), arrays.pop('b')
    yield _branch.RowLoRA(row=row, alpha=linear.alpha, a=a, b=b, own=arrays)
