"""Where compiled programs are kept."""

import os
import pathlib

import pytest

from tests.lib import caches


@pytest.fixture(autouse=True)
def _home(monkeypatch, tmp_path):
  monkeypatch.setenv('XDG_CACHE_HOME', os.fspath(tmp_path))
  # Set first, so that it is restored: `folder` sets it.
  monkeypatch.setenv(caches.VARIABLE, '')
  monkeypatch.setenv('XLA_FLAGS', '--xla_backend_optimization_level=1')
  monkeypatch.delenv(caches.VARIABLE)


def test_one_folder_for_each_setting(monkeypatch, tmp_path):
  first = caches.folder()
  assert first.parent == tmp_path / 'gemma4_lora' / 'tests'
  assert os.environ[caches.VARIABLE] == os.fspath(first)
  monkeypatch.delenv(caches.VARIABLE)
  assert caches.folder() == first
  monkeypatch.delenv(caches.VARIABLE)
  monkeypatch.setenv('XLA_FLAGS', '')
  assert caches.folder() != first


def test_the_variable_names_another_folder_or_none(monkeypatch, tmp_path):
  monkeypatch.setenv(caches.VARIABLE, os.fspath(tmp_path / 'mine'))
  assert caches.folder() == tmp_path / 'mine'
  monkeypatch.setenv(caches.VARIABLE, '')
  path = caches.folder()
  assert path.is_dir()
  assert tmp_path not in pathlib.Path(path).parents


def test_versions_without_use_are_removed():
  used = caches.folder()
  old, new = used.with_name('old'), used.with_name('new')
  for path in (old, new):
    path.mkdir()
  os.utime(old, (0, 0))
  del os.environ[caches.VARIABLE]
  caches.folder()
  assert new.exists() and not old.exists()
