"""Layouts of released Gemma 4 checkpoints, as pure renaming.

The only place, with `_fields.py` and `_kv_sharing.py`, that knows the names of
released checkpoints. All three layouts are brought to the nested one, which is
that of `model.init` but for the linears of the MLPs:

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
from gemma4_lora import quant

_FLAT_ROOTS = {
    'transformer': (),
    # The vision tower of the flat layout, named after Gemma 3's.
    'SigLiPFromPatches_0': ('vision_encoder',),
}
_STACKED = re.compile(r'transformer/stacked_layers/attention_type_(\d+)(/.*)?')
# Most of a small model, of which rows are looked up.
TABLES = ('input_embedding', 'per_layer_embeddings')
_LAYER = re.compile(r'layer_(\d+)')


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
    layout: How it is quantised; `None` if it is not.
    parts: Of what is quantised, the leaves that it consists of.
  """

  path: _trees.Path
  shape: tuple[int, ...]
  dtype: np.dtype
  key: _trees.Path
  index: int | None = None
  chunk_shape: tuple[int, ...] | None = None
  layout: quant.Layout | None = None
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
  """
  leaves = list(leaves)
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


def canonical(path: _trees.Path) -> _trees.Path:
  """Returns what all spellings of one leaf have in common.

  * MLP linears are `{'w': array}` in released files and bare arrays in
    `model.init`, which creates them in their parent's scope.
  * A module of the audio tower has a slash in its name, on which the flat
    layout splits.

  Args:
    path: For example `('layer_0', 'mlp', 'linear', 'w')`.

  Returns:
    For example `('layer_0', 'mlp', 'linear')`.
  """
  path = tuple(p for part in path for p in part.split('/'))
  if (
      len(path) >= 3
      and path[-1] == 'w'
      and path[-2] in ('gating_einsum', 'linear')
      and path[-3] in ('mlp', 'mlp2')
  ):
    path = path[:-1]
  return path


def layer_of(path: _trees.Path) -> int | None:
  """Index of the text tower's layer that the leaf is in, if it is in one."""
  match = _LAYER.fullmatch(path[0]) if path else None
  return int(match[1]) if match else None


def num_layers(paths: Iterable[_trees.Path]) -> int:
  return len({layer_of(p) for p in paths} - {None})


def tower_of(path: _trees.Path) -> str | None:
  """Name of the part that a text-only model does not have, or `None`.

  `model.init` creates the projections into the text tower only when it is
  given an image or a clip, so that they stand for themselves.

  Args:
    path: Path of a leaf below `params`.
  """
  if path[:1] in (('vision_encoder',), ('audio_encoder',)):
    return path[0]
  if path[:1] == ('embedder',) and len(path) > 1:
    for prefix in ('mm_', 'audio_'):
      if path[1].startswith(prefix):
        return f'embedder.{prefix}*'
  return None


def fill_value(path: _trees.Path) -> float:
  """Value of a leaf that nothing gives one: 1 for scales, 0 for weights."""
  return 1.0 if path[-1].endswith('scale') else 0.0


def older_gemma(
    model: Iterable[_trees.Path], stored: Iterable[_trees.Path]
) -> str | None:
  """Recognises a checkpoint of a Gemma before Gemma 4.

  Every layer of Gemma 4, and no layer before it, has a `skip_scale`.

  Args:
    model: Paths of the model's leaves below `params`.
    stored: Paths of the checkpoint's leaves below `params`.

  Returns:
    The name of the checkpoint's family, or `None`.
  """

  def is_skip(p):
    return layer_of(p) is not None and p[1:] == ('skip_scale',)

  stored = list(stored)
  if not any(map(is_skip, model)) or not num_layers(stored):
    return None
  if any(map(is_skip, stored)):
    return None
  if any(p[1:3] == ('attn', '_key_norm') for p in stored):
    return 'Gemma 3'
  return 'a Gemma before Gemma 4'
