"""Shapes of a batch, with and without the data."""

import dataclasses
import importlib.util
import pathlib

import jax
from kauldron import kd
from kauldron import konfig
import numpy as np
import pytest

from gemma4_lora import g4
from gemma4_lora.tpu import _batch
from tests.lib import plan_configs

_ROOT = pathlib.Path(__file__).parent.parent.parent


_CONFIGS = sorted(p.name for p in (_ROOT / 'configs').glob('gemma4*.py'))


def _config(name, args='', workdir='/nowhere'):
  path = _ROOT / 'configs' / name
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  cfg = konfig.get_config_from_module(module, args)
  cfg.workdir = workdir
  return cfg


def _shapes(batch):
  return {k: (v.shape, np.dtype(v.dtype)) for k, v in batch.spec.items()}


def test_the_config_says_what_the_data_has():
  """The quickstart's data are always at hand: both ways give one answer."""
  trainer = konfig.resolve(_config('quickstart.py'))
  read = _batch.batch_of(trainer)
  assert (read.batch, read.length, read.note) == (32, 48, None)
  said = _batch._from_config(trainer, batch=None, length=None, reason='x')
  assert _shapes(said) == _shapes(read)
  # And with other sizes.
  read = _batch.batch_of(trainer, batch=3, length=20)
  said = _batch._from_config(trainer, batch=3, length=20, reason='x')
  assert _shapes(said) == _shapes(read)
  assert _shapes(read)['target'] == ((3, 20, 1), np.dtype(np.int32))
  assert read.num_tokens == 60


@pytest.mark.parametrize('name', _CONFIGS)
def test_a_task_says_what_its_data_have(name):
  """Pairs, packed rows and images too, at the config's sizes and at others."""
  trainer = konfig.resolve(_config(name, 'tiny=True'))
  writer = _batch._writer(trainer.train_ds)
  for sizes in ({}, {'batch': 3, 'length': 20}):
    read = _batch.batch_of(trainer, **sizes)
    assert read.note is None
    said = _batch._from_config(
        trainer,
        batch=sizes.get('batch'),
        length=sizes.get('length'),
        reason='x',
    )
    assert dataclasses.replace(said, note=None) == read
    assert jax.tree.structure(said.spec) == jax.tree.structure(read.spec)
  assert writer.field_specs().keys() == read.spec.keys()
  assert read.num_tokens == 3 * 20 * (2 if name == 'gemma4_e2b_dpo.py' else 1)


def test_images_keep_their_size_whatever_the_length():
  """Even if they have as many patches as the text has tokens."""
  trainer = konfig.resolve(_config('gemma4_e2b_lora_images.py', 'tiny=True'))
  elements, task = trainer.train_ds.transforms
  task = dataclasses.replace(task, max_length=36)
  ds = dataclasses.replace(trainer.train_ds, transforms=(elements, task))
  trainer = dataclasses.replace(trainer, train_ds=ds)
  images = _batch.batch_of(trainer, batch=2, length=20).spec['images']
  assert images.patches.shape == (2, 36, 48)
  assert images.positions_xy.shape == (2, 36, 2)
  assert images.soft_token_counts == (4,)


def test_data_that_would_be_downloaded_are_not(tmp_path, monkeypatch):
  monkeypatch.setenv('GEMMA_CACHE_DIR', str(tmp_path))
  cfg = _config('gemma4_e2b_lora_mtnt.py')
  cfg.train_ds.data_dir = str(tmp_path)
  batch = _batch.batch_of(konfig.resolve(cfg))
  assert 'mtnt/en-fr of TFDS is not on this machine' in batch.note
  assert _shapes(batch)['input'] == ((16, 512), np.dtype(np.int32))
  # With the data, but without the tokenizer.
  (tmp_path / 'mtnt').mkdir()
  batch = _batch.batch_of(konfig.resolve(cfg))
  assert 'tokenizer_gemma4.model is not on this machine' in batch.note


def test_a_pipeline_that_fails_is_said_and_the_config_asked():
  trainer = konfig.resolve(_config('quickstart.py'))
  ds = dataclasses.replace(trainer.train_ds, data_source=None)
  batch = _batch.batch_of(dataclasses.replace(trainer, train_ds=ds))
  assert 'reading it gave' in batch.note
  assert (batch.batch, batch.length) == (32, 48)


class _Broken(kd.data.py.DataSource):

  @property
  def element_spec(self):
    raise OSError('no disk')


def _without_data(**changes):
  """A Trainer whose data cannot be read, and say nothing of their shapes."""
  trainer = konfig.resolve(plan_configs.config())
  ds = _Broken(data_source=None, shuffle=False, batch_size=8)
  return dataclasses.replace(trainer, train_ds=ds, **changes)


def test_shapes_by_what_model_and_losses_read():
  trainer = konfig.resolve(plan_configs.config())
  read = _batch.batch_of(trainer, batch=2, length=7)
  said = _batch.batch_of(_without_data(), batch=2, length=7)
  assert 'no disk' in said.note
  assert _shapes(said) == _shapes(read)


def test_neither_batch_nor_length():
  with pytest.raises(g4.tpu.PlanError, match='The length cannot .*--length='):
    _batch.batch_of(_without_data())


def test_shapes_that_nobody_says():
  metric = kd.metrics.Norm(tensor='batch.image')
  trainer = _without_data(train_metrics={'norm': metric})
  with pytest.raises(g4.tpu.PlanError, match="Norm.tensor='batch.image'"):
    _batch.batch_of(trainer, length=7)


@pytest.mark.parametrize('sizes', [{'batch': 0}, {'length': -1}])
def test_sizes_that_are_none(sizes):
  trainer = konfig.resolve(plan_configs.config())
  with pytest.raises(g4.tpu.PlanError, match='at least 1'):
    _batch.batch_of(trainer, **sizes)


def test_a_length_where_there_are_no_tokens():
  trainer = konfig.resolve(plan_configs.config())
  model = trainer.model.model.clone(tokens='batch.target')
  trainer = dataclasses.replace(trainer, model=trainer.model.clone(model=model))
  assert _batch.batch_of(trainer).length is None
  with pytest.raises(g4.tpu.PlanError, match='reads no tokens of the batch'):
    _batch.batch_of(trainer, length=7)
