"""With the linears, the table of other leaves is all that a model has."""

import pytest

from gemma4_lora import g4
from gemma4_lora.gemma4 import _leaves
from gemma4_lora.gemma4 import _linears
from gemma4_lora.gemma4 import _sizes
from gemma4_lora.gemma4 import _upstream
from tests.lib import hf_reference
from tests.lib import training


def _models():
  tiny = [getattr(g4.testing, name)(text_only=False) for name in _sizes.NAMES]
  return [*tiny, *(size.cls(text_only=False) for size in _sizes.SIZES)]


# Leaves that no linear multiplies an activation by.
_NOT_LINEAR = (
    'scale',
    'skip_scale',
    'router_scale',
    'per_expert_scale',
    'per_dim_scale',
    'bias',
    'input_embedding',
    'per_layer_embeddings',
    'pos_emb',
    'pos_embedding',
)
_CONVOLUTIONS = ('subsampling_0', 'subsampling_1', 'depthwise_conv1d')


@pytest.mark.parametrize('model', _models(), ids=lambda m: type(m).__module__)
def test_tables_are_all_leaves_but_clip_bounds(model):
  """Each linear of the model is in that of linears, the rest in the other."""
  params = training.flat(_upstream.abstract_params(model))
  shapes = {
      path: x.shape
      for path, x in params.items()
      if '.clip_input_' not in path and '.clip_output_' not in path
  }
  linears = _linears.linears(model.config)
  leaves = _leaves.leaves(model.config)
  assert {row.path: row.shape for row in (*linears, *leaves)} == shapes
  names = [row.name for row in leaves]
  assert len(set(names)) == len(names)
  assert {row.path for row in linears} == set(filter(_is_linear, shapes))


def _is_linear(path):
  *scopes, name = path.split('.')
  return name not in _NOT_LINEAR and scopes[-1] not in _CONVOLUTIONS


@pytest.mark.parametrize('model', _models(), ids=lambda m: type(m).__module__)
def test_each_row_has_names_of_its_own_in_hugging_face(model):
  """But for gate and up of experts, which are one tensor there as well."""
  leaves = _leaves.leaves(model.config)
  linears = [row for row in _linears.linears(model.config) if not row.is_routed]
  tensors = [name for leaf in leaves for name in leaf.hf_tensors]
  tensors += [f'{name}.weight' for row in linears for name in row.hf_names]
  assert all(row.hf_name for row in (*leaves, *linears))
  assert len(set(tensors)) == len(tensors)


@pytest.mark.parametrize('model', _models(), ids=lambda m: type(m).__module__)
def test_rows_say_which_field_decides_each_axis(model):
  for row in (*_linears.linears(model.config), *_leaves.leaves(model.config)):
    assert len(row.axes) == len(row.shape), row.name
    for axis in filter(None, row.axes):
      assert all(hasattr(model.config, x) for x in axis.split(' or ')), axis


@pytest.mark.parametrize('name', ['e', 'dense', 'moe'])
def test_hugging_face_has_the_tensors_under_these_names(name):
  """Shapes differ for the per-layer table alone: Hugging Face flattens it."""
  reference = hf_reference.load(name)
  stored = hf_reference.tensors(name)
  params = training.flat(reference.params)
  for leaf in _leaves.leaves(reference.model.config):
    (tensor,) = leaf.hf_tensors
    if not leaf.live:
      assert f'model.{tensor}' not in stored, leaf.name
      continue
    ours, theirs = params[leaf.path], stored[f'model.{tensor}']
    assert (ours.reshape(theirs.shape) == theirs).all(), leaf.name


def test_hugging_face_has_the_vision_leaves_under_these_names():
  stored = hf_reference.tensors('e_mm')
  config = hf_reference.load('e_mm').model.config
  leaves = [x for x in _leaves.leaves(config) if x.tower == 'vision']
  assert leaves
  for leaf in leaves:
    for name in leaf.hf_tensors:
      assert f'model.{name}' in stored, leaf.name
