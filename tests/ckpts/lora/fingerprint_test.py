"""What does not fit is named, with both sides, before anything is mixed."""

import copy
import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import pytest

from gemma4_lora import g4
from gemma4_lora.ckpts.lora import _fingerprint
from gemma4_lora.testing import _checkpoints
from tests.lib import models
from tests.lib import random_params

_model = functools.partial(
    models.lora, base_dtype=jnp.bfloat16, rank=4, alpha=8.0
)


def _describe(model, params=None):
  if params is None:
    params = _checkpoints.abstract_params(model)
    return _fingerprint.describe(model, params, content=False)
  return json.loads(json.dumps(_fingerprint.describe(model, params)))


def _check(saved, current):
  _fingerprint.check(saved, current, who='WHO', where='/run/ckpt_3')


def test_the_same_passes_and_lora_values_do_not_count():
  params = random_params.make(_model())
  other = jax.tree_util.tree_map_with_path(
      lambda k, x: x + 1 if 'lora' in jax.tree_util.keystr(k) else x, params
  )
  _check(_describe(_model(), params), _describe(_model(), other))
  # Shapes alone, against a whole one.
  _check(_describe(_model(), params), _describe(_model()))


@pytest.mark.parametrize(
    ('kwargs', 'match'),
    [
        (
            {'rank': 2},
            r'rank= of layer_0.*and \d+ more: checkpoint 4, config 2',
        ),
        ({'alpha': 4}, r'alpha= of layer_0.*: checkpoint 8, config 4'),
        (
            {'targets': 'attention'},
            r'targets=: only in the checkpoint layer_0.mlp.*; only in the'
            r' config \(none\)',
        ),
        ({'use_rslora': True}, 'use_rslora=: checkpoint False, config True'),
        ({'use_dora': True}, 'use_dora=: checkpoint False, config True'),
        (
            {'init_lora_weights': 'pissa'},
            "init_lora_weights=: checkpoint 'default', config 'pissa'",
        ),
        (
            {'dtype': jnp.bfloat16},
            r'shape or dtype of LoRA.*: checkpoint float32\[.*config bfloat16',
        ),
    ],
)
def test_other_lora_settings(kwargs, match):
  with pytest.raises(ValueError, match=f'WHO: .*/run/ckpt_3(?s:.*){match}'):
    _check(_describe(_model()), _describe(_model(**kwargs)))


def test_a_variant_younger_than_the_checkpoint_was_off():
  saved = _describe(_model())
  del saved['lora']['settings']['use_dora']
  _check(saved, _describe(_model()))
  with pytest.raises(ValueError, match='use_dora=: checkpoint False, config T'):
    _check(saved, _describe(_model(use_dora=True)))


def test_another_rank_is_said_once():
  """Not again as other shapes of all leaves."""
  with pytest.raises(ValueError, match='rank= of') as e:
    _check(_describe(_model()), _describe(_model(rank=2)))
  assert 'shape or dtype' not in str(e.value)


def test_both_ways_out_are_named():
  with pytest.raises(ValueError, match=r'set these back(?s:.*)--cfg\.workdir'):
    _check(_describe(_model()), _describe(_model(rank=2)))


def test_rank_of_one_rule():
  rules = [g4.targets.attention(layers=0, rank=2), 'text']
  with pytest.raises(
      ValueError, match=r'rank= of layer_0.attn.*: checkpoint 4, config 2'
  ):
    _check(_describe(_model()), _describe(_model(targets=rules)))


def test_another_model():
  other = g4.nn.LoRA(rank=4, alpha=8.0, model=models.base('Gemma4_E4B'))
  with pytest.raises(ValueError, match=r'leaves of the base \(model=\): only'):
    _check(_describe(_model()), _describe(other))
  model = models.base()
  wider = model.clone(config=dataclasses.replace(model.config, hidden_dim=60))
  wider = g4.nn.LoRA(rank=4, alpha=8.0, model=wider)
  with pytest.raises(
      ValueError,
      match=r'shape or dtype of the base.*checkpoint bfloat16\[2, 56, 40\],'
      r' config bfloat16\[2, 60, 40\]',
  ):
    _check(_describe(_model()), _describe(wider))


@pytest.mark.parametrize('path', ['final_norm.scale', 'layer_1.mlp.linear'])
def test_one_leaf_of_another_base(path):
  model = _model()
  params = random_params.make(model)
  other = jax.tree_util.tree_map_with_path(
      lambda k, x: x.at[0].add(1)
      if jax.tree_util.keystr(k, simple=True, separator='.') == path
      else x,
      params,
  )
  match = rf'init_transform=\): 1 of \d+ leaves, first {path}: checkpoint \w+, '
  with pytest.raises(ValueError, match=match):
    _check(_describe(model, params), _describe(model, other))


def test_pissa_says_what_else_may_change_the_base():
  model = _model(init_lora_weights='pissa')
  params = random_params.make(model)
  saved = _describe(model, params)
  saved['base']['checksums']['final_norm.scale'] = '0'
  with pytest.raises(ValueError, match='another kind of machine'):
    _check(saved, _describe(model, params))


def test_dropout_and_versions_are_lines_in_the_log(caplog):
  saved = copy.deepcopy(_describe(_model(dropout=0.1)))
  saved['versions']['gemma'] = '3.0'
  with caplog.at_level('INFO', logger='absl'):
    _check(saved, _describe(_model()))
  assert 'dropout=' in caplog.text and 'was 0.1 and is 0 now' in caplog.text
  assert 'saved with gemma 3.0' in caplog.text


def test_a_newer_format_is_refused():
  saved = _describe(_model()) | {'format': 2}
  with pytest.raises(ValueError, match='has format 2, and this .* format 1'):
    _check(saved, _describe(_model()))


def test_lora_of_gemma_is_known_by_its_leaves():
  """A model that says nothing of rank or alpha."""
  params = {
      'layer_0': {
          'w': jnp.ones(3),
          '_LoRAEinsum_0': {'lora': {'a': jnp.ones((3, 2))}},
      }
  }
  model = models.base()
  saved = _describe(model, params)
  assert saved['lora']['projections'] == {}
  params['layer_0']['_LoRAEinsum_0']['lora']['a'] = jnp.ones((3, 4))
  with pytest.raises(
      ValueError, match=r'float32\[3, 2\], config float32\[3, 4\]'
  ):
    _check(saved, _describe(model, params))


def test_finds_lora_within_a_model():
  lora = _model()
  assert _fingerprint.find_lora(lora) is lora
  assert _fingerprint.find_lora(g4.nn.RouterFix(model=models.base())) is None


def test_another_quantisation_of_the_base():
  def model(quantize):
    return _model(quantize=quantize, targets='q')

  int4 = model(g4.quant.Int4('mlp', group_size=2))
  for other, text in (
      (None, r"'\(none\)'"),
      (g4.quant.Int4('mlp', group_size=4), r'.*Int4\(.*group_size=4'),
      (g4.quant.Int8('mlp'), r'.*Int8\('),
  ):
    match = rf'quantize=: checkpoint .*Int4\(.*group_size=2.*, config {text}'
    with pytest.raises(ValueError, match=match):
      _check(_describe(int4), _describe(model(other)))
  _check(_describe(int4), _describe(int4))


@pytest.mark.parametrize(
    ('trained', 'current', 'match'),
    [
        ('int8', None, r'trained on int8 codes, parameters bfloat16'),
        (
            None,
            'int8',
            r'trained on \(none\).*trained on bfloat16, .* int8 codes',
        ),
        (
            'int8',
            g4.quant.Int4('mlp', group_size=2),
            r'int8 codes, .* int4 codes',
        ),
        (
            g4.quant.Int4('mlp', group_size=2),
            g4.quant.Int4('mlp', group_size=4),
            r'shape or dtype of the base .*scales',
        ),
    ],
)
def test_lora_belongs_to_a_quantised_base(trained, current, match):
  def shapes(quantize):
    if quantize == 'int8':
      quantize = g4.quant.Int8('mlp')
    model = _model(quantize=quantize, targets='q')
    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)['params']
    return model, params

  model, params = shapes(trained)
  saved = _fingerprint.describe(model, params, content=False)
  assert not _fingerprint.base_differences(saved, params)
  (problem,) = _fingerprint.base_differences(saved, shapes(current)[1])
  assert re.search(match, problem), problem
