"""Where transformers nests the language model and the towers."""

import pytest

from gemma4_lora.gemma4 import _hf_names


@pytest.mark.parametrize(
    ('module', 'want'),
    [
        ('model.language_model.layers.0.mlp.up_proj', 'layers.0.mlp.up_proj'),
        ('language_model.model.norm', 'norm'),
        ('language_model.norm', 'norm'),
        ('model.norm', 'norm'),
        ('norm', 'norm'),
        ('model.vision_tower.std_bias', 'vision_tower.std_bias'),
        ('audio_tower.output_proj', 'audio_tower.output_proj'),
    ],
)
def test_short(module, want):
  assert _hf_names.short(module) == want


def test_a_module_may_split_in_several_ways():
  assert list(_hf_names.candidates('model.norm')) == [
      ('model.', 'norm'),
      ('', 'model.norm'),
  ]


def test_each_class_has_prefixes_of_its_own():
  towers, text, *_ = _hf_names.CLASSES
  assert _hf_names.class_name(has_towers=True) == towers
  assert _hf_names.class_name(has_towers=False) == text
  assert _hf_names.prefix(towers, 'audio') == 'model.'
  assert _hf_names.prefix(text, 'audio') is None
  assert _hf_names.prefix(text, 'text') == 'model.'


@pytest.mark.parametrize(
    ('text', 'towers'),
    [
        ('model.language_model.', 'model.'),
        ('language_model.', 'model.'),
        ('model.', None),
        ('', None),
    ],
)
def test_towers_stand_beside_the_text(text, towers):
  assert _hf_names.towers_beside(text) == towers
  assert _hf_names.is_multimodal([text + 'norm']) == (towers is not None)


@pytest.mark.parametrize(
    ('module', 'want'),
    [
        ('model.vision_tower.std_bias', True),
        ('vision_tower.std_bias', True),
        ('model.embed_audio.embedding_projection', True),
        ('model.language_model.layers.0.mlp.up_proj', False),
        ('layers.0.mlp.up_proj', False),
    ],
)
def test_a_tower_is_known_with_its_prefix_and_without(module, want):
  assert _hf_names.is_in_tower(module) == want


# As in `conversion_mapping.py` of transformers 5.24, and the Hub's files.
_UNIFIED = {
    'vision_embedder.patch_ln1.weight': 'embed_vision.patch_ln1.weight',
    'vision_embedder.patch_dense.bias': 'embed_vision.patch_dense.bias',
    'vision_embedder.pos_embedding': 'embed_vision.pos_embedding',
    'vision_embedder.pos_norm.bias': 'embed_vision.pos_norm.bias',
    'embed_vision.embedding_projection.weight': (
        'embed_vision.multimodal_embedder.embedding_projection.weight'
    ),
    'embed_audio.embedding_projection.weight': (
        'embed_audio.embedding_projection.weight'
    ),
    'layers.0.mlp.up_proj.weight': 'layers.0.mlp.up_proj.weight',
}


@pytest.mark.parametrize(('hub', 'module'), _UNIFIED.items())
def test_names_of_12b_on_the_hub_and_in_transformers(hub, module):
  assert _hf_names.in_module(hub) == module
  assert _hf_names.in_module(module) == module
  assert _hf_names.on_hub(module) == hub


def test_a_file_is_of_12b_under_either_names():
  for names in (_UNIFIED.keys(), _UNIFIED.values()):
    assert _hf_names.is_unified(f'model.{name}' for name in names)
  of_e2b = ['model.embed_vision.embedding_projection.weight']
  assert not _hf_names.is_unified(of_e2b)
