"""gemma's own transforms fail on LoRA on Gemma 4: what to write instead."""

from gemma import gm
import pytest

from gemma4_lora import g4
from gemma4_lora.jobs.command_line import _gemmas_loaders
from tests.lib import models
from tests.lib import random_params
from tests.lib import states


@pytest.fixture(scope='module', name='released')
def _released(tmp_path_factory):
  path = tmp_path_factory.mktemp('released')
  base = models.base('Gemma4_31B', cut=models.one_layer)
  g4.testing.make_checkpoint(base, path / 'base')
  return str(path / 'base')


def _fails(transform):
  model = models.lora('Gemma4_31B', cut=models.one_layer, rank=2, targets='q')
  with pytest.raises(Exception) as failed:  # noqa: PT011
    transform.transform(states.wrap(random_params.make(model)))
  return failed.value


def test_skip_lora(released):
  error = _fails(gm.ckpts.SkipLoRA(gm.ckpts.LoadCheckpoint(path=released)))
  line = _gemmas_loaders.explain(error)
  assert line.startswith('gm.ckpts.SkipLoRA failed: User-provided restore item')
  assert 'Write g4.ckpts.SkipLoRA4 in its place: init_transform=' in line
  assert '\n' not in line


def test_load_checkpoint_alone(released):
  line = _gemmas_loaders.explain(_fails(gm.ckpts.LoadCheckpoint(path=released)))
  assert 'LoRA leaves, too, which no released checkpoint has. Wrap it' in line


def test_what_comes_from_elsewhere(tmp_path):
  missing = gm.ckpts.LoadCheckpoint(path=str(tmp_path / 'x'))
  assert _gemmas_loaders.explain(_fails(gm.ckpts.SkipLoRA(missing))) is None
  assert _gemmas_loaders.explain(ValueError('lora')) is None
