"""What the path of a leaf, or the name of a projection, alone tells."""

from gemma4_lora.gemma4 import _released


def _path(dotted):
  return tuple(dotted.split('.'))


def test_row_of_a_lora_leaf_wherever_the_model_stands():
  row = _released.row_of(_path('model.layer_7.attn.kv_einsum.lora.v'))
  assert (row.projection, row.slot) == ('v', 1)
  assert _released.row_of(_path('layer_7.attn.kv_einsum.lora.q')) is None


def test_experts_are_told_from_a_dense_mlp_by_an_axis():
  path = _path('layer_0.mlp.linear')
  assert _released.row_at(path, 2).projection == 'down'
  assert _released.row_at(path, 3).projection == 'expert_down'
  assert _released.row_at(_path('layer_0.mlp.nothing'), 2) is None


def test_paths_in_a_layer():
  assert _released.paths_in_layer('k', 'key_norm') == {
      ('attn', 'kv_einsum', 'w'),
      ('attn', 'k_einsum', 'w'),
      ('attn', 'key_norm', 'scale'),
  }


def test_names_that_towers_share():
  """The audio tower alone has a `post_norm`, and the text alone a `router`."""
  shared = _released.shared_projections()
  assert {'q', 'down', 'key_norm'} <= shared
  assert not {'post_norm', 'router', 'final_norm', 'bias'} & shared
