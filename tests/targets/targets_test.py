"""Rules: what each takes, and what each refuses."""

import json

from gemma import gm
from kauldron import konfig
import pytest

from gemma4_lora import targets
from gemma4_lora.gemma4 import _linears
from gemma4_lora.targets import _resolve as resolve_lib
from gemma4_lora.targets import _rule

_E2B = _linears.linears(gm.nn.Gemma4_E2B().config)
_E4B = _linears.linears(gm.nn.Gemma4_E4B().config)
_31B = _linears.linears(gm.nn.Gemma4_31B().config)
_MOE = _linears.linears(gm.nn.Gemma4_26B_A4B().config)


def _resolve(rules, rows=_E2B, **kwargs):
  kwargs = {'rank': 8} | kwargs
  return resolve_lib.resolve(_rule.normalize(rules), rows, **kwargs)


def _rows(rules, rows=_E2B):
  return [linear.row for linear in _resolve(rules, rows)]


def _projections(rules, rows=_E2B):
  return {row.projection for row in _rows(rules, rows)}


# ------------------------------ Ready rules -------------------------------

_ATTENTION = {'q', 'k', 'v', 'o'}
_MLP = {'gate', 'up', 'down'}
_PER_LAYER = {
    'per_layer_model_projection',
    'per_layer_input_gate',
    'per_layer_projection',
}
_EXPERTS = {'expert_gate', 'expert_up', 'expert_down'}


@pytest.mark.parametrize('rows', [_E2B, _E4B])
@pytest.mark.parametrize(
    ('target', 'want'),
    [
        ('text', _ATTENTION | _MLP | _PER_LAYER),
        ('all-linear', _ATTENTION | _MLP | _PER_LAYER),
        ('attention', _ATTENTION),
        ('mlp', _MLP),
        ('per_layer_inputs', _PER_LAYER),
    ],
)
def test_what_a_kind_takes_of_an_e_model(target, want, rows):
  """Every live row of its projections, and nothing else."""
  assert _rows(target, rows) == [
      row for row in rows if row.live and row.projection in want
  ]


@pytest.mark.parametrize(
    ('target', 'want'),
    [
        ('text', _ATTENTION | _MLP),
        ('attention', _ATTENTION),
        ('mlp', _MLP),
    ],
)
def test_what_a_kind_takes_of_31b(target, want):
  assert _rows(target, _31B) == [r for r in _31B if r.projection in want]


@pytest.mark.parametrize(
    ('target', 'want'),
    [
        ('text', _ATTENTION | _MLP),
        ('all-linear', _ATTENTION | _MLP),
        ('attention', _ATTENTION),
        ('mlp', _MLP),
        ('shared_expert', _MLP),
        ('experts', _EXPERTS),
        ('router', {'router'}),
    ],
)
def test_what_a_kind_takes_of_26b_a4b(target, want):
  assert _rows(target, _MOE) == [r for r in _MOE if r.projection in want]


@pytest.mark.parametrize(
    ('rows', 'kind'),
    [
        (_E2B, 'experts'),
        (_E2B, 'shared_expert'),
        (_E2B, 'vision'),
        (_31B, 'per_layer_inputs'),
        (_MOE, 'multimodal_projections'),
    ],
)
def test_a_kind_that_the_model_lacks(rows, kind):
  with pytest.raises(ValueError, match=f"'{kind}' matches no linear of this m"):
    _resolve(kind, rows)


# ------------------------------- Towers -----------------------------------

_MULTIMODAL = {
    cls.__name__: _linears.linears(cls(text_only=False).config)
    for cls in (
        gm.nn.Gemma4_E2B,
        gm.nn.Gemma4_E4B,
        gm.nn.Gemma4_31B,
        gm.nn.Gemma4_26B_A4B,
    )
}
_HAS_AUDIO = ('Gemma4_E2B', 'Gemma4_E4B')


def _take(rule, name):
  """What a rule takes of a multimodal model, as (tower, projection)."""
  rows = _rows(rule, _MULTIMODAL[name])
  return {(row.tower, row.projection) for row in rows}


@pytest.mark.parametrize('name', _MULTIMODAL)
def test_what_vision_takes(name):
  """Attention and MLP of all layers; neither patches nor what follows."""
  assert _take('vision', name) == {
      ('vision', projection) for projection in _ATTENTION | _MLP
  }
  assert len(_rows('vision', _MULTIMODAL[name])) == 7


@pytest.mark.parametrize('name', _HAS_AUDIO)
def test_what_audio_takes(name):
  """Of 12 layers each: 2 * (up, down), q, k, v, o and the convolution's 2."""
  wanted = {'q', 'k', 'v', 'o', 'up', 'down', 'linear_start', 'linear_end'}
  assert _take('audio', name) == {('audio', p) for p in wanted}
  rows = _rows('audio', _MULTIMODAL[name])
  assert len(rows) == 12 * 10
  assert [row.layer for row in rows] == sorted([*range(12)] * 10)


@pytest.mark.parametrize('name', ['Gemma4_31B', 'Gemma4_26B_A4B'])
def test_no_audio_tower(name):
  with pytest.raises(ValueError, match="'audio' matches no linear of this mo"):
    _resolve('audio', _MULTIMODAL[name])


@pytest.mark.parametrize('name', _MULTIMODAL)
def test_what_multimodal_projections_take(name):
  want = {('vision', 'mm_input_projection')}
  if name in _HAS_AUDIO:
    want.add(('audio', 'audio_input_projection'))
  assert _take('multimodal_projections', name) == want


@pytest.mark.parametrize('name', _MULTIMODAL)
@pytest.mark.parametrize(
    'target', ['text', 'all-linear', 'attention', 'mlp', 'q', 'down', 'q_proj']
)
def test_words_without_a_tower_mean_the_text(name, target):
  """The towers have q and down too, and are taken by none of these."""
  rows = _MULTIMODAL[name]
  text = [row for row in rows if row.tower == 'text']
  assert _rows(target, rows) == _rows(target, text)


@pytest.mark.parametrize('tower', ['vision', 'audio'])
@pytest.mark.parametrize(
    ('target', 'want'),
    [('q', {'q'}), ('attention', _ATTENTION), ('down', {'down'})],
)
def test_words_with_a_tower_mean_it(tower, target, want):
  rule = targets.Rule(target, tower=tower)
  assert _take(rule, 'Gemma4_E2B') == {(tower, p) for p in want}


@pytest.mark.parametrize(
    ('target', 'tower'),
    [
        ('patch_embedding', 'vision'),
        ('mm_input_projection', 'vision'),
        ('subsampling', 'audio'),
        ('relative_position', 'audio'),
        ('linear_start', 'audio'),
        ('output_projection', 'audio'),
        ('audio_input_projection', 'audio'),
    ],
)
def test_names_that_one_tower_has_need_no_tower(target, tower):
  assert _take(target, 'Gemma4_E2B') == {(tower, target)}


@pytest.mark.parametrize(
    ('target', 'want'),
    [
        ('vision_encoder.**.q_einsum', {('vision', 'q')}),
        (
            'audio_encoder.*.lconv.*',
            {('audio', 'linear_start'), ('audio', 'linear_end')},
        ),
        ('audio_encoder.*.fflayer_end.down', {('audio', 'down')}),
        (
            'embed_vision.embedding_projection',
            {('vision', 'mm_input_projection')},
        ),
        ('self_attn.post.linear', {('audio', 'o')}),
        ('layers.3.lconv1d.linear_end.linear', {('audio', 'linear_end')}),
    ],
)
def test_towers_by_path(target, want):
  assert _take(target, 'Gemma4_E2B') == want


def test_a_regex_of_peft_reaches_towers_by_their_own_names():
  rule = targets.peft(r'model\.vision_tower\..*\.(q|v)_proj\.linear')
  assert _take(rule, 'Gemma4_E2B') == {('vision', 'q'), ('vision', 'v')}
  # As in PEFT, where clipped linears wrap the linear that has the weight.
  rule = targets.peft(r'.*\.q_proj')
  assert _take(rule, 'Gemma4_E2B') == {('text', 'q')}


def test_layers_of_the_audio_tower_are_its_own():
  rule = targets.Rule('linear_end', layers=-1)
  assert [row.layer for row in _rows(rule, _MULTIMODAL['Gemma4_E2B'])] == [11]
  with pytest.raises(ValueError, match='the model has 12 layers'):
    _resolve(targets.Rule('linear_end', layers=30), _MULTIMODAL['Gemma4_E2B'])


def test_layers_of_the_text_are_not_bounded_by_the_towers():
  rule = targets.Rule('q', layers=30)
  (row,) = _rows(rule, _MULTIMODAL['Gemma4_E2B'])
  assert row.name == 'layer_30.attn.q'


@pytest.mark.parametrize('layers', [0, '8:', [0, 1]])
def test_some_layers_of_a_stacked_weight_are_an_error(layers):
  with pytest.raises(ValueError, match='of the 16 layers of vision_enc.*none'):
    _resolve(targets.vision(layers=layers), _MULTIMODAL['Gemma4_E2B'])


def test_all_layers_of_a_stacked_weight():
  rule = targets.vision(layers='0:')
  assert len(_rows(rule, _MULTIMODAL['Gemma4_E2B'])) == 7


@pytest.mark.parametrize(
    'rule',
    [
        'vision_tower.encoder.layers.3.self_attn.q_proj.linear',
        targets.peft(r'.*vision_tower\.encoder\.layers\.[0-3]\..*'),
    ],
)
def test_some_layers_of_a_stacked_weight_by_hf_names(rule):
  with pytest.raises(
      ValueError, match='in one weight: it is all of them or none'
  ):
    _resolve(rule, _MULTIMODAL['Gemma4_E2B'])


def test_functions_are_short_for_rules():
  assert targets.mlp(layers=3, rank=2) == targets.Rule('mlp', layers=3, rank=2)
  for function in (
      targets.text,
      targets.attention,
      targets.mlp,
      targets.per_layer_inputs,
      targets.experts,
      targets.shared_expert,
      targets.vision,
      targets.audio,
      targets.multimodal_projections,
  ):
    assert function() == targets.Rule(function.__name__)


# ------------------------------- By name ----------------------------------


@pytest.mark.parametrize(
    ('target', 'want'),
    [
        ('v', {'v'}),
        ('layer_*.attn.q_einsum', {'q'}),
        ('layer_*.attn.q_einsum.w', {'q'}),
        ('layer_*.attn.kv_einsum', {'k', 'v'}),
        ('layer_*.mlp.**', _MLP),
        ('layer_3.attn.*', _ATTENTION),
        ('q_proj', {'q'}),
        ('self_attn.v_proj', {'v'}),
        ('language_model.layers.3.self_attn.q_proj', {'q'}),
        ('model.layers.3.mlp.up_proj', {'up'}),
    ],
)
def test_what_a_name_takes(target, want):
  assert _projections(target) == want


def test_names_of_hugging_face_mean_one_layer():
  (row,) = _rows('model.language_model.layers.3.self_attn.q_proj')
  assert row.name == 'layer_3.attn.q'


def test_star_stays_within_a_segment():
  with pytest.raises(ValueError, match='matches no linear'):
    _resolve('layer_*.w')


def test_a_part_of_a_segment_matches_nothing():
  with pytest.raises(ValueError, match='matches no linear'):
    _resolve('layer_1.attn.q_ein')


@pytest.mark.parametrize(
    'target', ['layer_*.mlp.**', '**', 'layer_0.**', '**.w']
)
def test_no_wildcard_takes_the_router(target):
  assert 'router' not in _projections(target, _MOE)


@pytest.mark.parametrize(
    'regex', [r'.*', r'.*\.router\..*', r'.*(proj|router).*']
)
def test_no_regex_takes_the_router(regex):
  try:
    assert 'router' not in _projections(targets.peft(regex), _MOE)
  except ValueError as error:
    assert 'matches no linear' in str(error)


@pytest.mark.parametrize('target', ['router', 'layer_*.mlp.router_logits'])
def test_the_router_by_its_own_name(target):
  if target == 'router':
    assert _projections(target, _MOE) == {'router'}
  else:  # A path of the router alone is a wildcard all the same.
    with pytest.raises(ValueError, match='matches no linear'):
      _resolve(target, _MOE)


# ------------------------------- By place ---------------------------------


@pytest.mark.parametrize(
    ('layers', 'want'),
    [
        (3, [3]),
        (-1, [34]),
        ([0, -2], [0, 33]),
        ('30:', [30, 31, 32, 33, 34]),
        ('-2:', [33, 34]),
        ('0:10:4', [0, 4, 8]),
    ],
)
def test_layers(layers, want):
  rows = _rows(targets.Rule('q', layers=layers))
  assert [row.layer for row in rows] == want


@pytest.mark.parametrize(
    ('attention', 'want'),
    [('global', [4, 9, 14, 19, 24, 29, 34]), ('local', None)],
)
def test_local_and_global_layers(attention, want):
  rows = _rows(targets.Rule('o', attention=attention))
  global_layers = [4, 9, 14, 19, 24, 29, 34]
  want = want or [i for i in range(35) if i not in global_layers]
  assert [row.layer for row in rows] == want


def test_exclude():
  rule = targets.Rule('mlp', exclude=['down', 'layer_0.mlp.up'])
  names = {row.name for row in _rows(rule)}
  assert 'layer_0.mlp.gate' in names and 'layer_1.mlp.up' in names
  assert 'layer_0.mlp.up' not in names and 'layer_0.mlp.down' not in names


# --------------------------------- PEFT -----------------------------------


def test_a_string_of_peft_is_a_regex_on_the_whole_name():
  rule = targets.peft(r'.*\.self_attn\.(q|v)_proj')
  assert _projections(rule) == {'q', 'v'}
  with pytest.raises(ValueError, match='matches no linear'):
    _resolve(targets.peft('q_proj'))  # A regex, and not on the end of a name.


def test_a_list_of_peft_is_of_names():
  rule = targets.peft(
      ['q_proj', 'up_proj'],
      layers_to_transform=[0, 1],
      exclude_modules=['layers.1.mlp.up_proj'],
  )
  assert [row.name for row in _rows(rule)] == [
      'layer_0.attn.q',
      'layer_0.mlp.up',
      'layer_1.attn.q',
  ]


@pytest.mark.parametrize(
    'pattern,name,layers,want',
    [
        ('layers', 'q_proj', 2, {('text', 'q')}),
        ('language_model.layers', 'q_proj', 2, {('text', 'q')}),
        # Of the towers, which both have this name, one.
        (['no', r'encoder\.layers'], 'q_proj.linear', 16, {('vision', 'q')}),
        ('audio_tower.layers', 'q_proj.linear', 12, {('audio', 'q')}),
    ],
)
def test_a_pattern_of_peft_says_which_layers_are_numbered(
    pattern, name, layers, want
):
  rule = targets.peft(
      [name], layers_to_transform=list(range(layers)), layers_pattern=pattern
  )
  assert _take(rule, 'Gemma4_E2B') == want


@pytest.mark.parametrize(
    'kwargs,match',
    [
        ({'layers_pattern': 'layers'}, "'layers' needs layers_to_transform="),
        (
            {'layers_pattern': 'blocks', 'layers_to_transform': 0},
            'fits none of',
        ),
        (
            {
                'layers_pattern': '(language_model|audio_tower).layers',
                'layers_to_transform': 0,
            },
            r"fits \['text', 'audio'\] of .*one rule for each",
        ),
        (
            {
                'layers_pattern': 'encoder.layers',
                'layers_to_transform': 0,
                'tower': 'text',
            },
            "is about the vision tower, and tower='text'",
        ),
    ],
)
def test_wrong_patterns_of_peft(kwargs, match):
  with pytest.raises(ValueError, match=match):
    targets.peft(['q_proj'], **kwargs)


# --------------------------- Order and settings ----------------------------


def test_first_match_wins_with_settings_of_its_own():
  adapted = _resolve(
      [
          targets.attention(layers=0, rank=2, alpha=6, dropout=0.5),
          targets.Rule('q', rank=3),
          'text',
      ],
      rank=8,
      alpha=16,
      dropout=0.1,
  )
  settings = {x.row.name: (x.rank, x.alpha, x.dropout) for x in adapted}
  assert settings['layer_0.attn.q'] == (2, 6, 0.5)
  assert settings['layer_1.attn.q'] == (3, 16, 0.1)
  assert settings['layer_1.attn.v'] == (8, 16, 0.1)
  assert [x.row for x in adapted] == [row for row in _E2B if row.live]


def test_alpha_defaults_to_the_rules_own_rank():
  (linear,) = _resolve(targets.Rule('layer_0.attn.q', rank=3), rank=8)
  assert linear.alpha == 3
  assert linear.scale(use_rslora=False) == 1


def test_scale_of_rslora():
  (linear,) = _resolve('layer_0.attn.q', rank=16, alpha=8)
  assert linear.scale(use_rslora=False) == 0.5
  assert linear.scale(use_rslora=True) == 2.0


# ------------------------------- Dead rows --------------------------------


def test_a_projection_leaves_out_its_dead_layers():
  assert [row.layer for row in _rows('v')] == list(range(15))


@pytest.mark.parametrize(
    'target', ['layer_20.attn.v', 'layers.20.self_attn.v_proj']
)
def test_a_dead_row_by_name_is_an_error_that_says_why(target):
  with pytest.raises(ValueError, match='reads the keys and values of another'):
    _resolve(target)


def test_only_dead_rows_by_place_are_an_error():
  with pytest.raises(ValueError, match='reads the keys and values of another'):
    _resolve(targets.Rule('v', layers='20:'))


def test_a_wildcard_leaves_dead_rows_out():
  rows = _rows('layer_20.attn.*')
  assert [row.projection for row in rows] == ['q', 'o']


# -------------------------------- Bad input --------------------------------


@pytest.mark.parametrize(
    ('typo', 'meant'),
    [
        ('atention', "'attention'"),
        ('per_layer_projction', "'per_layer_projection'"),
        ('layer_0.attn.qq', "'layer_0.attn.q'"),
        ('layer_*.mlp.gatin_einsum', "'layer_"),
        ('q_prj', "'q_proj'"),
    ],
)
def test_a_typo_gets_close_matches(typo, meant):
  with pytest.raises(ValueError, match=f'Did you mean .*{meant}'):
    _resolve(typo)


def test_a_typo_in_exclude():
  with pytest.raises(ValueError, match="exclude='dwn' .* Did you mean 'down'"):
    _resolve(targets.Rule('mlp', exclude='dwn'))


def test_a_typo_in_a_regex():
  with pytest.raises(ValueError, match='matches no linear'):
    _resolve(targets.peft(r'.*\.self_atn\.q_proj'))


def test_a_rule_whose_rows_are_all_taken():
  with pytest.raises(ValueError, match="is taken by Rule\\('attention'\\)"):
    _resolve(['attention', 'q'])


def test_a_rule_that_looks_in_the_wrong_place():
  with pytest.raises(ValueError, match='change layers=, attention= or tower='):
    _resolve(targets.Rule('layer_3.attn.q', layers=4))


def test_a_rule_that_excludes_all():
  with pytest.raises(ValueError, match='excludes all that it selects'):
    _resolve(targets.Rule('q', exclude='attention'))


def test_a_layer_that_there_is_not():
  with pytest.raises(ValueError, match='the model has 35 layers, 0 to 34'):
    _resolve(targets.Rule('q', layers=35))


def test_no_targets_is_an_error():
  with pytest.raises(ValueError, match='adapts nothing'):
    _resolve([])


@pytest.mark.parametrize('bad', [3, ['q', 3], {'q': 1}, None])
def test_what_is_no_rule_is_an_error(bad):
  with pytest.raises(ValueError, match='targets= takes strings and rules'):
    _rule.normalize(bad)


@pytest.mark.parametrize(
    ('kwargs', 'match'),
    [
        ({'rank': 0}, 'rank= takes a positive integer'),
        ({'alpha': 0}, 'alpha= takes a finite number other than 0'),
        ({'alpha': float('nan')}, 'alpha= takes a finite .* Got: nan'),
        ({'alpha': float('inf')}, 'alpha= takes a finite .* Got: inf'),
        ({'alpha': 10**400}, 'alpha= takes a finite number'),
        ({'alpha': '8'}, "alpha= takes a finite .* Got: '8'"),
        ({'dropout': 2}, 'dropout= takes a rate'),
        ({'dropout': '0'}, 'dropout= takes a rate'),
        ({'attention': 'sliding'}, r"takes one of \['local', 'global'\]"),
        ({'tower': 'visoin'}, r"takes one of \['text', 'vision', 'audio'\]"),
        ({'layers': 'last'}, r'Rule\(layers=...\) takes a number'),
        ({'layers': 1.5}, r'Rule\(layers=...\) takes a number'),
        ({'exclude': 3}, r'Rule\(exclude=...\) takes a string'),
    ],
)
def test_settings_that_no_linear_could_have(kwargs, match):
  with pytest.raises(ValueError, match=match):
    targets.Rule('q', **kwargs)


# --------------------------- Config, JSON, repr ----------------------------


def test_repr_shows_what_was_set():
  rule = targets.Rule(['q', 'v'], layers='20:', rank=4)
  assert repr(rule) == "Rule(('q', 'v'), layers='20:', rank=4)"
  assert eval(repr(rule), {'Rule': targets.Rule}) == rule


def test_rules_survive_json_in_a_config():
  with konfig.imports():
    from gemma4_lora import g4

  cfg = konfig.ConfigDict(
      {
          'rules': [
              g4.targets.attention(layers=[0, -1], rank=4),
              g4.targets.peft(r'.*\.up_proj', dropout=0.1),
              'down',
          ]
      }
  )
  again = konfig.ConfigDict(json.loads(cfg.to_json()))
  rules = konfig.resolve(again).rules
  assert _rule.normalize(rules) == (
      targets.Rule('attention', layers=(0, -1), rank=4),
      targets.Rule(r'.*\.up_proj', regex=True, dropout=0.1),
      targets.Rule('down'),
  )
