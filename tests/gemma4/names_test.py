"""Spellings of one leaf, and what its path alone tells."""

import pytest

from gemma4_lora.gemma4 import _names


@pytest.mark.parametrize(
    ('path', 'want'),
    [
        ('layer_0.mlp.linear.w', 'layer_0.mlp.linear'),
        ('layer_0.mlp2.gating_einsum.w', 'layer_0.mlp2.gating_einsum'),
        ('layer_0.mlp.linear', 'layer_0.mlp.linear'),
        (
            'layer_0.mlp.linear.clip_input_max',
            'layer_0.mlp.linear.clip_input_max',
        ),
        ('layer_0.attn.q_einsum.w', 'layer_0.attn.q_einsum.w'),
        ('audio_encoder.conformer/x_0.w', 'audio_encoder.conformer.x_0.w'),
    ],
)
def test_canonical(path, want):
  got = _names.canonical(tuple(path.split('.')))
  assert '.'.join(got) == want


@pytest.mark.parametrize(
    ('path', 'want'),
    [
        ('vision_encoder.entry.w', 'vision_encoder'),
        ('audio_encoder.x', 'audio_encoder'),
        ('embedder.mm_input_projection.w', 'embedder.mm_*'),
        ('embedder.audio_input_projection.w', 'embedder.audio_*'),
        ('embedder.input_embedding', None),
        ('layer_0.vision_encoder', None),
    ],
)
def test_tower_of(path, want):
  assert _names.tower_of(tuple(path.split('.'))) == want


def test_older_gemma():
  model = [('layer_0', 'skip_scale'), ('layer_0', 'mlp', 'linear')]
  gemma3 = [('layer_0', 'attn', '_key_norm', 'scale')]
  gemma2 = [('layer_0', 'mlp', 'linear')]
  assert _names.older_gemma(model, gemma3) == 'Gemma 3'
  assert _names.older_gemma(model, gemma2) == 'a Gemma before Gemma 4'
  assert _names.older_gemma(model, model) is None
  assert _names.older_gemma(gemma2, gemma3) is None
  # Of a part of a model nothing can be said.
  assert _names.older_gemma([('skip_scale',)], [('mlp', 'linear')]) is None


@pytest.mark.parametrize(
    ('path', 'want'),
    [
        ('layer_0.mlp.linear', 'layer_0.mlp.linear.w'),
        ('layer_0.mlp2.gating_einsum', 'layer_0.mlp2.gating_einsum.w'),
        ('layer_0.mlp.linear.w', 'layer_0.mlp.linear.w'),
        ('layer_0.skip_scale', 'layer_0.skip_scale'),
    ],
)
def test_released(path, want):
  got = _names.released(tuple(path.split('.')))
  assert '.'.join(got) == want


def test_tables_are_known_wherever_the_model_stands():
  assert _names.is_table(('params', 'embedder', 'input_embedding'))
  assert not _names.is_table(('params', 'embedder', 'mm_input_embedding'))
