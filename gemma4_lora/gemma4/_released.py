"""Which linear a LoRA leaf is of, by its path alone.

A transform sees a state and no model. The axes of a projection depend on its
path alone, so those of any released model will do; its shape will not.
"""

import functools

from gemma4_lora import _trees
from gemma4_lora.gemma4 import _linears
from gemma4_lora.gemma4 import _rows
from gemma4_lora.gemma4 import _upstream


def row_of(path: _trees.Path) -> _linears.Linear | None:
  """Returns the row of `….lora.<projection>`, None for no linear of Gemma 4.

  Args:
    path: The model may stand deeper in the parameters.
  """
  # A dot behind, as `starred` looks for whole segments.
  starred = '.' + _rows.starred(f'{_trees.join(path)}.').removesuffix('.')
  return next((r for k, r in _table() if starred.endswith(k)), None)


@functools.cache
def _table() -> tuple[tuple[str, _linears.Linear], ...]:
  """Returns `.layer_*.attn.q_einsum.lora.q` with a row, for all models."""
  rows = {}
  for cls in _upstream.RELEASED:
    for row in _linears.linears(cls.config):
      rows.setdefault(f'.{row.starred(row.lora_path)}', row)
  return tuple(rows.items())
