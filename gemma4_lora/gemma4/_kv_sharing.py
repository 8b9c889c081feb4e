"""Which leaves of KV-shared layers a checkpoint may lack.

The last layers of E2B and E4B reuse keys and values of earlier layers. The
model declares k, v and the key norm for them all the same, but never reads
them, and pruned (QAT) checkpoints do not carry them.
"""

from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence

from gemma4_lora import _trees
from gemma4_lora.ckpts.sources import _checkpoint_layouts

_Shapes = Mapping[_trees.Path, tuple[int, ...]]

_KEY_NORM = ('attn', 'key_norm', 'scale')
_KV = (('attn', 'kv_einsum', 'w'), ('attn', 'k_einsum', 'w'), _KEY_NORM)
_QUERY = ('attn', 'q_einsum', 'w')
_MLP = ('mlp', 'linear')
# Of the released models those that share keys and values, and no others, have
# per-layer inputs.
_PER_LAYER_INPUT = ('per_layer_input_gate', 'w')


def prunable(
    declared: _Shapes, present: Collection[_trees.Path]
) -> frozenset[_trees.Path]:
  """Returns the leaves that are absent because their layer is KV-shared.

  A transform sees a state and a file, not the model's config, so sharing is
  read from the trees. Absent leaves are excused only if all of this holds:

  * the tree has per-layer inputs in every layer (E2B, E4B);
  * the layers are the last ones, up to the very last, and not all of them;
  * each lacks all of k, v and key norm, and has its query projection;
  * the layer before the first of them is global and the one before that local:
    these are the two that gemma shares;
  * where MLPs are of two widths (E2B doubles those of the shared layers), the
    run starts where the width changes.

  Only layers at the root of the tree count, so that leaves of the same names
  in another tower are never taken for them.

  Args:
    declared: Canonical paths and shapes below `params`, of the side that has
      more leaves.
    present: Canonical paths below `params` of the other side.
  """
  n = _checkpoint_layouts.num_layers(declared)
  layers = [
      {
          p[1:]: shape
          for p, shape in declared.items()
          if p[:1] == (f'layer_{i}',)
      }
      for i in range(n)
  ]
  if not n or not all(_PER_LAYER_INPUT in layer for layer in layers):
    return frozenset()

  def lacks_kv(i: int) -> bool:
    root = f'layer_{i}'
    return (root, *_QUERY) in present and not any(
        (root, *leaf) in present for leaf in _KV
    )

  first = n
  while first > 0 and lacks_kv(first - 1):
    first -= 1
  for start in range(max(first, 2), n):
    if _may_start(layers, start):
      return frozenset(
          (f'layer_{i}', *leaf)
          for i in range(start, n)
          for leaf in _KV
          if leaf in layers[i]
      )
  return frozenset()


def _may_start(layers: Sequence[_Shapes], start: int) -> bool:
  """Whether the layers from `start` on may be the KV-shared ones."""
  heads = [layer.get(_KEY_NORM, (0,))[-1] for layer in layers]
  # Head sizes tell global from local layers, which the tree does not name.
  is_global = [size == max(heads) for size in heads]
  if not all(is_global) and (is_global[start - 2], is_global[start - 1]) != (
      False,
      True,
  ):
    return False
  widths = [layer.get(_MLP, (0,))[0] for layer in layers]
  return len(set(widths)) == 1 or (
      len(set(widths[:start])) == 1 and widths[0] not in widths[start:]
  )
