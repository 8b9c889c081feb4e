"""Which leaves of KV-shared layers a checkpoint may lack.

The last layers of E2B and E4B reuse keys and values of earlier layers. The
model declares k, v and the key norm for them all the same, but never reads
them, and pruned (QAT) checkpoints do not carry them.
"""

from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence

from gemma4_lora import _trees
from gemma4_lora.gemma4 import _names
from gemma4_lora.gemma4 import _released

_Shapes = Mapping[_trees.Path, tuple[int, ...]]

_KV = ('k', 'v', 'key_norm')
# Released models have per-layer inputs just where they share keys and values.
_PER_LAYER_INPUT = 'per_layer_input_gate'


def prunable(
    declared: _Shapes, present: Collection[_trees.Path]
) -> frozenset[_trees.Path]:
  """Returns the leaves that are absent because their layer is KV-shared.

  A transform sees a state and a file, not the model's config, so sharing is
  read from the trees. Leaves may be absent only if all of this holds:

  * the tree has per-layer inputs in every layer (E2B, E4B);
  * the layers are the last ones, up to the very last, and not all of them;
  * each lacks all of k, v and key norm, and has its query projection;
  * the layer before the first of them is global and the one before that local:
    these are the two that gemma shares;
  * if MLPs have two widths (E2B doubles those of the shared layers), the run
    starts where the width changes.

  Only layers at the root of the tree count, so that leaves of the same names
  in another tower are never taken for them.

  Args:
    declared: Canonical paths and shapes below `params`, of the side that has
      more leaves.
    present: Canonical paths below `params` of the other side.
  """
  n = _names.num_layers(declared)
  layers = [
      {
          p[1:]: shape
          for p, shape in declared.items()
          if p[:1] == (f'layer_{i}',)
      }
      for i in range(n)
  ]
  if not n or not all(_has(layer, _PER_LAYER_INPUT) for layer in layers):
    return frozenset()
  present_in = [
      {p[1:] for p in present if p[:1] == (f'layer_{i}',)} for i in range(n)
  ]

  def lacks_kv(i: int) -> bool:
    return _has(present_in[i], 'q') and not _has(present_in[i], *_KV)

  first = n
  while first > 0 and lacks_kv(first - 1):
    first -= 1
  for start in range(max(first, 2), n):
    if _may_start(layers, start):
      return frozenset(
          (f'layer_{i}', *leaf)
          for i in range(start, n)
          for leaf in _released.paths_in_layer(*_KV)
          if leaf in layers[i]
      )
  return frozenset()


def _may_start(layers: Sequence[_Shapes], start: int) -> bool:
  """Whether the layers from `start` on may be the KV-shared ones."""
  heads = [_shape(layer, 'key_norm')[-1] for layer in layers]
  # Head sizes tell global from local layers, which the tree does not name.
  is_global = [size == max(heads) for size in heads]
  if not all(is_global) and (is_global[start - 2], is_global[start - 1]) != (
      False,
      True,
  ):
    return False
  widths = [_shape(layer, 'down')[0] for layer in layers]
  return len(set(widths)) == 1 or (
      len(set(widths[:start])) == 1 and widths[0] not in widths[start:]
  )


def _has(layer: Collection[_trees.Path], *projections: str) -> bool:
  """Whether a layer has any of some rows."""
  return any(p in layer for p in _released.paths_in_layer(*projections))


def _shape(layer: _Shapes, projection: str) -> tuple[int, ...]:
  """Shape of a row of a layer, `(0,)` where it has none."""
  paths = _released.paths_in_layer(projection)
  return next((layer[p] for p in paths if p in layer), (0,))
