"""Layouts of released Gemma 4 checkpoints, as pure renaming.

All three layouts are brought to the nested one, which is that of `model.init`
except for the linears of the MLPs. `gemma4._names` knows what stands in it.

```
nested   layer_0.mlp.linear.w                             (F, D)
bare     layer_0.mlp.linear                               (F, D)
flat     transformer/layer_0/mlp/linear  w                (F, D)
stacked  transformer/stacked_layers/attention_type_0/mlp/linear  w  (L/P, F, D)
```
"""

from collections.abc import Iterable
import dataclasses
import re

import numpy as np

from gemma4_lora import _trees
from gemma4_lora.quant import _format

_FLAT_ROOTS = {
    'transformer': (),
    # The vision tower of the flat layout, named after Gemma 3's.
    'SigLiPFromPatches_0': ('vision_encoder',),
}
_STACKED = re.compile(
    r'transformer/stacked_layers/attention_type_(\d{1,6})(/.*)?'
)
_NNX = ('value', 'raw_value')
# More than any model has.
_MOST_LAYERS = 10_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stored:
  """A leaf of a checkpoint.

  Attributes:
    path: Its path in the nested layout: `('params', 'layer_0', …)`.
    shape: Shape of the leaf.
    dtype: Dtype in the file.
    key: Path of the array in the file that holds the leaf.
    index: Which slice of the array's first axis it is; `None` for all of it.
    chunk_shape: Shape of the pieces in which the file stores the array.
    encoding: How it is quantised; `None` if it is not.
    parts: The codes and scales of a quantised leaf, as leaves; else empty.
  """

  path: _trees.Path
  shape: tuple[int, ...]
  dtype: np.dtype
  key: _trees.Path
  index: int | None = None
  chunk_shape: tuple[int, ...] | None = None
  encoding: _format.Encoding | None = None
  parts: tuple['Stored', ...] = ()

  @property
  def name(self) -> str:
    return _trees.join(self.path)


def nested(leaves: Iterable[Stored]) -> tuple[str, list[Stored]]:
  """Renames the leaves of a file, in any layout, to the nested layout.

  Args:
    leaves: All leaves of the file, with `path` equal to `key`.

  Returns:
    The name of the layout, and the leaves. Trees of parameters alone, as
    released, come under `params`, where Kauldron's checkpoints have theirs.

  Raises:
    ValueError: They are not of a model that Flax Linen has saved.
  """
  leaves = list(leaves)
  params = [x for x in leaves if x.key[0] == 'params'] or leaves
  if params and all(x.key[-1] in _NNX for x in params):
    raise ValueError(
        f'its leaves end in .{params[0].key[-1]}, as {params[0].name}: it is an'
        ' nnx.State of Flax NNX. Save its arrays alone:'
        ' ocp.StandardCheckpointer().save(path, nnx.to_pure_dict(state)).'
    )
  if any(x.key[0] == 'params' for x in leaves):
    return 'kauldron', leaves
  roots = {x.key[0].split('/')[0] for x in leaves}
  if roots and roots <= set(_FLAT_ROOTS):
    is_stacked = any(_STACKED.fullmatch(x.key[0]) for x in leaves)
    layout = 'stacked' if is_stacked else 'flat'
    leaves = [y for x in leaves for y in _from_flat(x, _pattern_len(leaves))]
  else:
    layout = 'nested'
  return layout, [
      dataclasses.replace(x, path=('params', *x.path)) for x in leaves
  ]


def _pattern_len(leaves: Iterable[Stored]) -> int:
  """Number of attention types: stacked layers are that many layers apart."""
  matches = (_STACKED.fullmatch(x.key[0]) for x in leaves)
  return 1 + max((int(m[1]) for m in matches if m), default=-1)


def _from_flat(leaf: Stored, pattern_len: int) -> list[Stored]:
  """Renames one leaf of the flat or stacked layout."""
  head, *tail = leaf.key
  if match := _STACKED.fullmatch(head):
    if not leaf.shape or leaf.shape[0] > _MOST_LAYERS:
      raise ValueError(
          f'{_trees.join(leaf.key)} has shape {leaf.shape}, whose first axis must'
          ' be that of layers.'
      )
    rest = (*(match[2] or '').split('/')[1:], *tail)
    return [
        dataclasses.replace(
            leaf,
            path=(f'layer_{i * pattern_len + int(match[1])}', *rest),
            shape=leaf.shape[1:],
            index=i,
        )
        for i in range(leaf.shape[0])
    ]
  root, *names = head.split('/')
  return [dataclasses.replace(leaf, path=(*_FLAT_ROOTS[root], *names, *tail))]
