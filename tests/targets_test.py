"""Selectors: what each takes, and what each refuses."""

from gemma import gm
import pytest

from gemma4_lora import _linears
from gemma4_lora import targets

_E2B = _linears.text_linears(gm.nn.Gemma4_E2B().config)
_MOE = _linears.text_linears(gm.nn.Gemma4_26B_A4B().config)


def _projections(rows):
  return {row.projection for row in rows}


def test_default_is_every_live_text_linear_of_e2b():
  rows = targets.resolve(targets.DEFAULT, _E2B)
  assert list(rows) == [row for row in _E2B if row.live]


def test_default_leaves_out_router_and_experts():
  rows = targets.resolve(targets.DEFAULT, _MOE)
  assert _projections(rows) == {'q', 'k', 'v', 'o', 'gate', 'up', 'down'}
  assert {row.path.split('.')[1] for row in rows} == {'attn', 'mlp2'}


@pytest.mark.parametrize(
    ('target', 'want'),
    [
        ('attention', {'q', 'k', 'v', 'o'}),
        ('mlp', {'gate', 'up', 'down'}),
        (
            'per_layer_inputs',
            {
                'per_layer_model_projection',
                'per_layer_input_gate',
                'per_layer_projection',
            },
        ),
        ('v', {'v'}),
        ('layer_*.attn.q_einsum.w', {'q'}),
        ('layer_*.attn.kv_einsum.w', {'k', 'v'}),
        ('layer_*.mlp.**', {'gate', 'up', 'down'}),
        ('layer_3.attn.*', {'q', 'k', 'v', 'o'}),
    ],
)
def test_what_a_target_takes(target, want):
  assert _projections(targets.resolve([target], _E2B)) == want


def test_targets_add_up_in_the_tables_order():
  rows = targets.resolve(['v', 'q', 'layer_0.attn.q'], _E2B)
  assert _projections(rows) == {'q', 'v'}
  assert list(rows) == [
      row for row in _E2B if row.live and row.projection in ('q', 'v')
  ]


def test_star_stays_within_a_segment():
  with pytest.raises(ValueError, match='matches no linear'):
    targets.resolve(['layer_*.w'], _E2B)


def test_a_projection_leaves_out_its_dead_layers():
  layers = [row.layer for row in targets.resolve(['v'], _E2B)]
  assert layers == list(range(15))


def test_a_dead_row_by_name_is_an_error_that_says_why():
  with pytest.raises(ValueError, match='reads the keys and values of another'):
    targets.resolve(['layer_20.attn.v'], _E2B)


@pytest.mark.parametrize('target', ['layer_*.mlp.**', '**', 'layer_0.**'])
def test_no_wildcard_takes_the_router(target):
  try:
    rows = targets.resolve([target], _MOE)
  except ValueError:
    rows = ()
  assert 'router' not in _projections(rows)


def test_the_router_by_its_own_name():
  assert _projections(targets.resolve(['router'], _MOE)) == {'router'}


@pytest.mark.parametrize(
    ('typo', 'meant'),
    [
        ('atention', "'attention'"),
        ('per_layer_projction', "'per_layer_projection'"),
        ('layer_0.attn.qq', "'layer_0.attn.q'"),
    ],
)
def test_a_typo_gets_close_matches(typo, meant):
  with pytest.raises(ValueError, match=f'Did you mean .*{meant}'):
    targets.resolve([typo], _E2B)


def test_experts_are_refused_by_name():
  with pytest.raises(ValueError, match='experts'):
    targets.resolve(['expert_up'], _MOE)


def test_no_targets_is_an_error():
  with pytest.raises(ValueError, match='adapts nothing'):
    targets.resolve([], _E2B)


@pytest.mark.parametrize('bad', [3, ['q', 3], {'q': 1}])
def test_what_is_no_string_is_an_error(bad):
  with pytest.raises(ValueError, match='takes a string or a list of strings'):
    targets.normalize(bad)
