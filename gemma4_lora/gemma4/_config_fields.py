"""Which fields of a model's config decide the shape of a leaf, by axis.

For error messages: a mismatch of shapes is one of a handful of fields.
"""

from collections.abc import Iterable
import re

from gemma4_lora import _trees
from gemma4_lora.ckpts.sources import _checkpoint_layouts

_HEAD = 'head_dim or global_key_size'

# The first row whose pattern matches the end of a leaf's canonical path.
_AXES = tuple(
    (re.compile(rf'(^|.*\.){pattern}'), axes)
    for pattern, axes in (
        (r'input_embedding', ('num_embed', 'embed_dim')),
        (
            r'per_layer_embeddings',
            ('num_embed', 'attention_types', 'per_layer_input_dim'),
        ),
        (
            r'per_layer_model_projection\.w',
            ('embed_dim', 'attention_types', 'per_layer_input_dim'),
        ),
        (r'per_layer_projection_norm\.scale', ('per_layer_input_dim',)),
        (r'per_layer_input_gate\.w', ('embed_dim', 'per_layer_input_dim')),
        (r'per_layer_projection\.w', ('per_layer_input_dim', 'embed_dim')),
        (r'q_einsum\.w', ('num_heads', 'embed_dim', _HEAD)),
        (r'kv_einsum\.w', (None, 'num_kv_heads', 'embed_dim', _HEAD)),
        (r'k_einsum\.w', ('num_global_kv_heads', 'embed_dim', _HEAD)),
        (r'attn_vec_einsum\.w', ('num_heads', _HEAD, 'embed_dim')),
        (r'(key|query)_norm\.scale', (_HEAD,)),
        # Experts, then dense MLPs, which have an axis less.
        (
            r'mlp\.gating_einsum',
            ('num_experts', None, 'expert_dim', 'embed_dim'),
        ),
        (r'mlp\.linear', ('num_experts', 'expert_dim', 'embed_dim')),
        (r'mlp\.gating_einsum', (None, 'hidden_dim', 'embed_dim')),
        (r'mlp\.linear', ('hidden_dim', 'embed_dim')),
        (r'mlp2\.gating_einsum', (None, 'moe_dense_hidden_dim', 'embed_dim')),
        (r'mlp2\.linear', ('moe_dense_hidden_dim', 'embed_dim')),
        (r'router_logits\.w', ('embed_dim', 'num_experts')),
        (r'router_scale', ('embed_dim',)),
        (r'per_expert_scale', ('num_experts',)),
        (r'\w*norm\.scale', ('embed_dim',)),
    )
)


def differing(
    path: _trees.Path, model: tuple[int, ...], checkpoint: tuple[int, ...]
) -> Iterable[str]:
  """Yields the config fields by which two shapes of one leaf differ.

  Args:
    path: Path of the leaf below `params`.
    model: The leaf's shape in the model.
    checkpoint: The leaf's shape in the checkpoint.

  Yields:
    For example `'embed_dim (model 32, checkpoint 40)'`.
  """
  tower = _checkpoint_layouts.tower_of(path)
  if tower:
    audio = tower.startswith(('audio', 'embedder.audio'))
    yield f'the {"audio" if audio else "vision"}_encoder of the config'
    return
  name = _trees.join(_checkpoint_layouts.canonical(path))
  if len(model) != len(checkpoint):
    if 'mlp' in path:
      yield 'enable_moe'
    return
  for pattern, axes in _AXES:
    if pattern.fullmatch(name) and len(axes) == len(model):
      for axis, m, c in zip(axes, model, checkpoint, strict=True):
        if m != c and axis:
          yield f'{_spell(axis)} (model {m}, checkpoint {c})'
      return


def _spell(axis: str) -> str:
  # `attention_types` has one entry for each layer.
  return 'number of layers' if axis == 'attention_types' else axis
