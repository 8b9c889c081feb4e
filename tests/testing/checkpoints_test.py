"""Checkpoints that `make_checkpoint` writes are those that gemma reads."""

import functools

from gemma import gm
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from gemma4_lora import g4
from gemma4_lora.gemma4 import _names
from gemma4_lora.testing import _checkpoints
from tests.lib import models
from tests.lib import states

_model = functools.partial(models.base, cut=models.whole)


def _canonical(params):
  flat = _checkpoints._flatten(params)
  return {
      _names.canonical(k): np.asarray(v, np.float32) for k, v in flat.items()
  }


# Leaves of E4B are E2B's.
_CASES = [
    (variant, layout)
    for variant in states.VARIANTS
    for layout in states.LAYOUTS
    if variant != 'Gemma4_E4B' or layout == 'nested'
]
# What gemma 4.0.1 remaps wrongly: it takes the MoE router for a linear of an MLP,
# and drops the clipping bounds of an MLP's linears.
_REMAPPED = ('flat', 'stacked')


@pytest.mark.parametrize(('variant', 'layout'), _CASES)
def test_gemma_reads_it(tmp_path, variant, layout):
  """gemma's own loader finds in each layout the values that are returned.

  Of towers too, if it can.
  """
  is_clipped = variant == 'Gemma4_E2B' and layout in _REMAPPED
  model = _model(variant, text_only=is_clipped)
  params = g4.testing.make_checkpoint(model, tmp_path / 'c', layout=layout)
  assert jax.tree.structure(params) == jax.tree.structure(
      _checkpoints.abstract_params(model)
  )
  if variant == 'Gemma4_26B_A4B' and layout in _REMAPPED:
    return
  path = tmp_path / 'c'
  if layout.startswith('kauldron'):
    path = path / 'checkpoints' / 'ckpt_0'
  read, want = _canonical(gm.ckpts.load_params(path)), _canonical(params)
  assert read.keys() == want.keys()
  for key, value in want.items():
    np.testing.assert_array_equal(read[key], value, err_msg=str(key))


@pytest.mark.parametrize(
    ('variant', 'layout', 'key', 'shape'),
    [
        ('Gemma4_E2B', 'nested', 'layer_0.mlp.linear.w', (48, 32)),
        ('Gemma4_E2B', 'nested_bare', 'layer_0.mlp.linear', (48, 32)),
        ('Gemma4_26B_A4B', 'nested', 'layer_0.mlp2.linear.w', (24, 40)),
        ('Gemma4_26B_A4B', 'nested', 'layer_0.mlp.linear.w', (6, 20, 40)),
        ('Gemma4_31B', 'flat', 'transformer/layer_0/mlp/linear.w', (56, 40)),
        ('Gemma4_31B', 'flat', 'transformer/layer_0.skip_scale', (1,)),
        (
            'Gemma4_31B',
            'stacked',
            'transformer/stacked_layers/attention_type_2/attn/k_einsum.w',
            (2, 2, 40, 16),
        ),
    ],
)
def test_names_in_the_file(tmp_path, variant, layout, key, shape):
  """Leaves are named as in the released files of that layout."""
  g4.testing.make_checkpoint(_model(variant), tmp_path / 'c', layout=layout)
  tree = ocp.StandardCheckpointer().metadata(tmp_path / 'c').item_metadata.tree
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  shapes = {
      jax.tree_util.keystr(k, simple=True, separator='.'): v.shape
      for k, v in leaves
  }
  assert shapes[key] == shape


def test_no_value_is_trivial(tmp_path):
  """Zeros and ones would hide a leaf that was not restored, or swapped."""
  model = _model('Gemma4_E2B', text_only=False)
  params = g4.testing.make_checkpoint(model, tmp_path / 'c')
  for leaf in jax.tree.leaves(params):
    assert not np.any(leaf.astype(np.float32) == 0)
    assert leaf.size == 1 or len(np.unique(leaf)) > 1
  flat = _checkpoints._flatten(params)
  lows = [k for k in flat if k[-1].endswith('_min')]
  assert lows
  for key in lows:
    high = (*key[:-1], key[-1].replace('_min', '_max'))
    assert np.all(flat[key] < flat[high])


def test_dtype_seed_and_params(tmp_path):
  model = _model('Gemma4_E2B')
  one = g4.testing.make_checkpoint(model, tmp_path / '1', dtype=jnp.float32)
  assert {x.dtype for x in jax.tree.leaves(one)} == {np.dtype('float32')}
  two = g4.testing.make_checkpoint(model, tmp_path / '2', seed=1)
  assert {x.dtype for x in jax.tree.leaves(two)} == {np.dtype('bfloat16')}
  assert not np.array_equal(
      one['final_norm']['scale'], two['final_norm']['scale']
  )
  three = g4.testing.make_checkpoint(model, tmp_path / '3', params=two)
  jax.tree.map(np.testing.assert_array_equal, two, three)


def test_lora_wrapper(tmp_path):
  """Of a wrapped model the base model is written."""
  model = g4.nn.LoRA(rank=2, model=_model('Gemma4_E2B'))
  params = g4.testing.make_checkpoint(model, tmp_path / 'c')
  assert not any('lora' in k for k in _checkpoints._flatten(params))
  read = gm.ckpts.load_params(tmp_path / 'c')
  assert _canonical(read).keys() == _canonical(params).keys()


def test_prune_shared_kv(tmp_path):
  """The file lacks k, v and key norms of shared layers; the result has them."""
  params = g4.testing.make_checkpoint(
      _model('Gemma4_E4B'), tmp_path / 'c', prune_shared_kv=True
  )
  read = _canonical(gm.ckpts.load_params(tmp_path / 'c'))
  assert sorted(
      '.'.join(k) for k in _canonical(params).keys() - read.keys()
  ) == [
      f'layer_{i}.attn.{leaf}'
      for i in (3, 4, 5)
      for leaf in ('key_norm.scale', 'kv_einsum.w')
  ]


def test_step(tmp_path):
  g4.testing.make_checkpoint(
      _model('Gemma4_E2B'), tmp_path / 'c', layout='kauldron', step=30
  )
  assert (tmp_path / 'c' / 'checkpoints' / 'ckpt_30').is_dir()


def test_nothing_to_prune(tmp_path):
  with pytest.raises(ValueError, match='no layer of the model shares keys'):
    g4.testing.make_checkpoint(
        _model('Gemma4_31B'), tmp_path / 'c', prune_shared_kv=True
    )
  assert not (tmp_path / 'c').exists()


def test_overwrites_nothing(tmp_path):
  with pytest.raises(FileExistsError, match='exists. Give another path'):
    g4.testing.make_checkpoint(_model('Gemma4_E2B'), tmp_path)


def test_unknown_layout(tmp_path):
  with pytest.raises(ValueError, match="must be one of.*'stacked'.*'stcked'"):
    g4.testing.make_checkpoint(
        _model('Gemma4_E2B'), tmp_path / 'c', layout='stcked'
    )
