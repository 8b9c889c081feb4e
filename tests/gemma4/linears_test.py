"""The table against the real models' own parameters."""

import dataclasses

from gemma import gm
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4_lora import g4
from gemma4_lora.gemma4 import _linears
from gemma4_lora.gemma4 import _sizes
from tests.lib import forward
from tests.lib import models
from tests.lib import random_params
from tests.lib import table_rows
from tests.lib import training

_RELEASED = [size.cls for size in _sizes.SIZES]
_TINY = [getattr(g4.testing, name) for name in _sizes.NAMES]


@pytest.mark.parametrize('cls', _RELEASED + _TINY, ids=lambda c: c.__module__)
def test_rows_cover_each_weight_once(cls):
  table_rows.check_each_weight_once(_linears.linears(cls().config))


# Counted by hand from the layer patterns: all layers, KV-shared ones,
# global ones with k = v.
@pytest.mark.parametrize(
    ('cls', 'num_live', 'num_dead'),
    [
        # 35 * (q, o, gate, up, down, 2 per-layer) + 15 * (k, v) + 1
        (gm.nn.Gemma4_E2B, 35 * 7 + 15 * 2 + 1, 20 * 2),
        (gm.nn.Gemma4_E4B, 42 * 7 + 24 * 2 + 1, 18 * 2),
        # 60 * (q, k, o, gate, up, down) + 50 local * v
        (gm.nn.Gemma4_31B, 60 * 6 + 50, 0),
        (g4.nn.Gemma4_12B, 48 * 6 + 40, 0),
        # 30 * (q, k, o, gate, up, down, router, 3 expert) + 25 local * v
        (gm.nn.Gemma4_26B_A4B, 30 * 10 + 25, 0),
    ],
)
def test_counts_of_the_released_models(cls, num_live, num_dead):
  rows = _linears.linears(cls().config)
  assert sum(row.live for row in rows) == num_live
  assert sum(not row.live for row in rows) == num_dead


def test_dead_rows_are_those_that_logits_ignore():
  """NaN in every dead projection leaves the logits as they were."""
  model = models.base('Gemma4_E2B')
  params = random_params.make(model)
  rows = _linears.linears(model.config)
  flat = training.flat(params)
  for row in rows:
    if not row.live:
      flat[row.path] = np.full_like(flat[row.path], np.nan)
  treedef = jax.tree.structure(params)
  poisoned = jax.tree.unflatten(treedef, flat.values())
  tokens = jnp.arange(1, 13)[None]

  want = forward.logits(model, params, tokens)
  got = forward.logits(model, poisoned, tokens)
  assert any(not row.live for row in rows)
  np.testing.assert_array_equal(got, want)


def test_names_read_well():
  names = [
      row.name
      for row in _linears.linears(_TINY[0]().config)
      if row.layer in (None, 0)
  ]
  assert names == [
      'embedder.per_layer_model_projection',
      'layer_0.attn.q',
      'layer_0.attn.k',
      'layer_0.attn.v',
      'layer_0.attn.o',
      'layer_0.mlp.gate',
      'layer_0.mlp.up',
      'layer_0.mlp.down',
      'layer_0.per_layer_input_gate',
      'layer_0.per_layer_projection',
  ]


def test_moe_row_names_tell_dense_from_experts():
  names = {
      row.name for row in _linears.linears(g4.testing.Gemma4_26B_A4B().config)
  }
  assert {
      'layer_0.mlp2.gate',
      'layer_0.mlp2.down',
      'layer_0.mlp.router',
      'layer_0.mlp.expert_gate',
      'layer_0.mlp.expert_down',
  } <= names


def test_lora_params_are_counted_from_the_shapes():
  (row,) = (
      row
      for row in _linears.linears(gm.nn.Gemma4_E2B().config)
      if row.name == 'layer_4.attn.v'
  )
  # Global layer: 1 head of 512; width 1536.
  assert row.shape == (2, 1, 1536, 512)
  assert (row.in_shape, row.out_shape) == ((1536,), (1, 512))
  assert dataclasses.replace(row, slot=0).in_shape == (1536,)
