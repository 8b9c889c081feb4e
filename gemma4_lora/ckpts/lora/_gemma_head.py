"""LoRA as gemma's own `gm.nn.LoRA` keeps it, from git HEAD (4.1.0) on.

gemma's branch is beside an einsum, not on a projection: k and v share one A, as
do gate and up, and B has an axis for them. It has no alpha: its scale is 1. It
does not apply the base's own factor.

```python
{'layer_0': {
    'attn': {'kv_einsum': {'_LoRAEinsum_0': {'lora': {
        'a': bf16[D, rank], 'b': bf16[rank, 2, K, H],
    }}}},
    'mlp': {'_LoRAEinsum_gating_einsum': {'lora': {
        'a': bf16[D, rank], 'b': bf16[rank, 2, F],
    }}},
}}
```

https://github.com/google-deepmind/gemma/blob/main/gemma/gm/nn/_lora.py
"""

from collections.abc import Iterable
from collections.abc import Mapping

import numpy as np

from gemma4_lora import _trees
from gemma4_lora.gemma4 import _linears

_MARK = '_LoRAEinsum_'


def is_gemmas(leaves: Iterable[str]) -> bool:
  """Whether leaves, by their dotted paths, are gemma's."""
  return any(_MARK in path for path in leaves)


def to_ours(
    leaves: Mapping[str, np.ndarray], rows: Iterable[_linears.Linear]
) -> dict[str, np.ndarray]:
  """Returns the leaves as `g4.nn.LoRA` keeps them, at scale 1.

  Leaves of a linear whose output the model never uses are left out: they never
  had a gradient.

  Args:
    leaves: Arrays by dotted path.
    rows: The table of the model.
  """
  ours, taken = {}, set()
  for row in rows:
    path = _path(row)
    if f'{path}.a' not in leaves:
      continue
    a, b = leaves[f'{path}.a'], leaves[f'{path}.b']
    taken |= {f'{path}.a', f'{path}.b'}
    if not row.live:
      continue
    if row.slot_axis is not None and row.slot is not None:
      # Behind the rank, B has the axes of the weight except for the inputs.
      before = [n for n in range(row.slot_axis) if n not in row.in_axes]
      b = np.take(b, row.slot, axis=1 + len(before))
    ours[f'{row.lora_path}.a'] = a
    ours[f'{row.lora_path}.b'] = b / np.asarray(_weight_scale(row), b.dtype)
  # Any other leaf keeps its name, so that errors can show it.
  return ours | {k: x for k, x in leaves.items() if k not in taken}


def _path(row: _linears.Linear) -> str:
  *scope, name = row.path.split('.')
  # An MLP's linears share its scope; others have one of their own.
  einsum = '0' if name in ('w', 'kernel') else name
  return '.'.join((*scope, f'{_MARK}{einsum}', _trees.LORA_KEY))


def _weight_scale(row: _linears.Linear) -> float:
  """The base's own factor, which ours applies to the branch too."""
  if row.projection == 'per_layer_model_projection':
    return row.in_shape[0] ** -0.5
  return 1.0
