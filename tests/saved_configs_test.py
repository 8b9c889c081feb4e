"""Configs that were saved at df3812f resolve: nothing of a run is lost."""

import json
import pathlib

from kauldron import kd
from kauldron import konfig
import optax
import pytest

from gemma4_lora import g4
from tests.lib import shipped

_DATA = pathlib.Path(__file__).parent / 'testdata'
_CONFIGS = sorted((_DATA / 'configs_df3812f').glob('*.json'))
_CALLS = json.loads((_DATA / 'calls_df3812f.json').read_text())
_NAMES = json.loads((_DATA / 'names_df3812f.json').read_text())

# Took arrays or rows of the table, which no config can hold.
_LEFT = {
    'quant': {
        'Layout',
        'dense',
        'dequantize',
        'is_quantized',
        'layout_of',
        'nbytes',
        'quantize',
        'resolve',
        'shape_of',
        'slice_in_dim',
        'slice_rows',
        'take',
    },
    'targets': {
        'Adapted',
        'Saved',
        'check_dropout',
        'check_rank',
        'resolve',
        'resolve_full',
        'rows_of',
    },
}
_TARGETS = {
    'Rule',
    'attention',
    'audio',
    'experts',
    'mlp',
    'multimodal_projections',
    'peft',
    'per_layer_inputs',
    'shared_expert',
    'text',
    'vision',
}


# Configs that are newer.
_NEWER = {'gemma4_12b_lora_no_robots', 'gemma4_12b_qlora_no_robots'}


def test_each_shipped_config_is_there():
  shipped = {x.stem for x in (_DATA.parents[1] / 'configs').glob('*.py')}
  assert shipped - _NEWER <= {x.stem for x in _CONFIGS}


@pytest.mark.parametrize('path', _CONFIGS, ids=lambda path: path.stem)
def test_a_saved_config_resolves(path, tmp_path):
  cfg = konfig.ConfigDict(json.loads(path.read_text()))
  trainer = shipped.resolved(cfg, tmp_path)
  assert isinstance(trainer.optimizer, optax.GradientTransformation)
  assert isinstance(
      trainer.checkpointer, kd.ckpts.Checkpointer | g4.ckpts.LoRACheckpointer
  )
  assert trainer.model.adapted
  assert trainer.train_losses and trainer.evals


@pytest.mark.parametrize('name', _CALLS)
def test_a_saved_call_resolves(name):
  """Each constructor and function that takes what JSON holds."""
  made = konfig.resolve(konfig.ConfigDict(_CALLS[name]))
  namespace, _, kind = name.partition('.')
  wanted = getattr(getattr(g4, namespace), kind, None)
  if isinstance(wanted, type):
    assert isinstance(made, wanted)
  else:
    assert made is not None


@pytest.mark.parametrize('name', _NAMES)
def test_a_public_name_resolves(name):
  """As a config finds it: aliases count."""
  namespace, _, attribute = name.partition('.')
  if attribute not in _LEFT.get(namespace, ()):
    qualname = f'gemma4_lora.g4:{name}'
    assert konfig.configdict_proxy.import_qualname(qualname)


def test_what_left_g4_is_named_in_the_changelog():
  changelog = (_DATA.parents[1] / 'CHANGELOG.md').read_text()
  for namespace, names in _LEFT.items():
    for name in names:
      if not hasattr(getattr(g4, namespace), name):
        assert f'`{name}`' in changelog, f'g4.{namespace}.{name}'


def test_targets_lists_what_users_write():
  listed = {
      name
      for name, value in vars(g4.targets).items()
      if not name.startswith('_')
      and getattr(value, '__module__', '').startswith('gemma4_lora.targets.')
  }
  assert listed == _TARGETS


def test_a_name_that_is_none_is_an_error():
  with pytest.raises(AttributeError, match="targets' has no attribute 'nrm'"):
    _ = g4.targets.nrm
