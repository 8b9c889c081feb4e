"""Tiny models have every feature of the real ones."""

import jax
import pytest

from gemma4_lora import g4
from gemma4_lora.gemma4 import _sizes
from gemma4_lora.testing import _checkpoints

_REAL = {size.name: size.cls for size in _sizes.SIZES}
_SWITCHES = (
    'k_eq_v_global',
    'use_post_attn_norm',
    'use_post_ffw_norm',
    'qk_norm_with_scale',
    'final_logit_softcap',
    'enable_moe',
    'use_bidirectional_attention',
    'global_rope_proportion',
    'local_rope_proportion',
)


@pytest.mark.parametrize('variant', _REAL)
def test_switches_are_those_of_the_real_model(variant):
  """What is on or off in a real config is so in the tiny one."""
  real, tiny = _REAL[variant], getattr(g4.testing, variant)
  assert issubclass(tiny, real)
  real, tiny = real.config, tiny.config
  for name in _SWITCHES:
    assert getattr(tiny, name) == getattr(real, name), name
  for name in (
      'per_layer_input_dim',
      'kv_cache_sharing_config',
      'override_kv_shared_ffw_hidden',
      'num_global_kv_heads',
      'vision_encoder',
      'audio_encoder',
      'num_experts',
  ):
    assert bool(getattr(tiny, name)) == bool(getattr(real, name)), name
  assert tiny.global_key_size > tiny.head_dim
  for name in ('use_clipped_linears', 'standardize_embeddings'):
    assert getattr(tiny.vision_encoder, name, None) == getattr(
        real.vision_encoder, name, None
    )


@pytest.mark.parametrize('variant', _REAL)
def test_leaves_are_those_of_the_real_model(variant):
  """Layer for layer and tower for tower, leaves have the same names."""

  def names(cls, text_only):
    model = cls(tokens='x', text_only=text_only)
    types = cls.config.attention_types
    shapes = _checkpoints.abstract_params(model)
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    ranks = {jax.tree_util.keystr(k): len(v.shape) for k, v in leaves}
    # Layer numbers differ: compare what layers of each type have.
    for i, kind in enumerate(types):
      ranks = {
          k.replace(f"['layer_{i}']", f'[{kind}]'): v for k, v in ranks.items()
      }
    # Of the audio tower too.
    return {k: v for k, v in ranks.items() if 'conformer/stacked' not in k}

  for text_only in (True, False):
    assert names(getattr(g4.testing, variant), text_only) == names(
        _REAL[variant], text_only
    )


@pytest.mark.parametrize('variant', _REAL)
def test_text_only_has_no_tower(variant):
  cls = getattr(g4.testing, variant)
  shapes = _checkpoints.abstract_params(cls(tokens='x'))
  assert not {'vision_encoder', 'audio_encoder'} & shapes.keys()
  shapes = _checkpoints.abstract_params(cls(tokens='x', text_only=False))
  assert ('vision_encoder' in shapes) == bool(cls.config.vision_encoder)
