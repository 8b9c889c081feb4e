"""A plan is made once, and made anew when anything of it may have changed."""

import json

from kauldron import konfig
import pytest

from gemma4_lora import g4
from gemma4_lora.tpu import _cache
from tests.lib import plan_configs
from tests.lib import plans


def _key(config='{}', **settings):
  return _cache.key_of(config, **settings)


def test_a_plan_is_kept_and_found(tmp_path):
  cfg = plan_configs.config(cut='one_layer')
  first = g4.tpu.plan(cfg, topology='cpu:1', cache=tmp_path)
  (file,) = tmp_path.iterdir()
  # The workdir is not part of it.
  cfg.workdir = '/elsewhere'
  second = g4.tpu.plan(cfg, topology='cpu:1', cache=tmp_path)
  assert (first.cached, second.cached) == (False, True)
  assert second.to_json() == first.to_json() | {'cached': True}
  assert 'from the cache' in str(second)
  # A damaged file is as good as none.
  file.write_text('{"topology":')
  assert _cache.load(tmp_path, file.stem) is None
  _cache.save(tmp_path, file.stem, first)
  assert json.loads(file.read_text())['topology'] == 'cpu:1'


def test_what_a_plan_depends_on(monkeypatch):
  base = _key()
  assert base == _key()
  assert base == _key('{"workdir": "/tmp"}')
  others = [_key('{"seed": 1}'), _key(topology='v6e:1x1')]
  monkeypatch.setenv('LIBTPU_INIT_ARGS', '--xla_x=1')
  others.append(_key())
  monkeypatch.delenv('LIBTPU_INIT_ARGS')
  monkeypatch.setattr(_cache, '_version', lambda name: '0')
  others.append(_key())
  assert len({base, *others}) == 5


def test_code_of_the_users_own(tmp_path, monkeypatch):
  """The config names a module: its file counts, whatever its version."""
  monkeypatch.syspath_prepend(tmp_path)
  file = tmp_path / 'my_losses_for_this_test.py'
  file.write_text('A = 1')
  config = '{"loss": {"__qualname__": "my_losses_for_this_test:Loss"}}'
  before = _key(config)
  file.write_text('A = 2')
  assert _key(config) != before
  # What stands in a notebook has no file.
  assert _key('{"loss": {"__qualname__": "__main__:Loss"}}') is None


def test_the_names_are_those_that_configs_have():
  assert 'gemma4_lora.g4' in _cache._modules(plan_configs.config().to_json())


def test_where(monkeypatch, tmp_path):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  assert _cache.folder(True) == tmp_path / 'gemma4_lora' / 'plans'
  assert _cache.folder('/x') != _cache.folder(True)
  assert _cache.folder(None) is None
  assert _cache.folder(False) is None
  monkeypatch.setenv('XDG_CACHE_HOME', '')
  monkeypatch.setenv('HOME', '/home/me')
  assert str(_cache.folder(True)) == '/home/me/.cache/gemma4_lora/plans'


def test_a_folder_that_cannot_be_written(tmp_path, caplog):
  file = tmp_path / 'file'
  file.write_text('')
  _cache.save(file / 'folder', 'key', plans.PLAN)
  assert 'not kept for another time' in caplog.text


def test_the_callers_config_stays_as_it_is(tmp_path):
  cfg = plan_configs.config()
  cfg.workdir = None
  before = cfg.to_json()
  with pytest.raises(g4.tpu.PlanError, match='at least 1'):
    g4.tpu.plan(cfg, topology='cpu:1', batch=0, cache=tmp_path)
  assert cfg.to_json() == before
  assert isinstance(cfg, konfig.ConfigDict)
