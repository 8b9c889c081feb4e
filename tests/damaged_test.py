"""Commands on damaged files end with a line."""

import os
import shutil

import jax.numpy as jnp
import pytest
import safetensors.numpy

from gemma4_lora import g4
from tests.lib import models
from tests.lib import trained

_CONFIG = """
from kauldron import konfig

with konfig.imports():
  from jax import numpy as jnp
  from kauldron import kd
  from gemma4_lora import g4
  from tests.lib import models


def get_config():
  return kd.train.Trainer(
      model=g4.nn.LoRA(
          rank=2,
          targets=["q", "down"],
          quantize=None,
          model=models.base(cut=models.one_layer, dtype=jnp.float32),
      ),
      init_transform=g4.ckpts.SkipLoRA4(
          wrapped=g4.ckpts.PartialLoad(path="{path}"),
      ),
  )
"""
# What stands in the place of a file.
_INSTEAD = {
    'empty': b'',
    'list': b'[]',
    'object': b'{"a": {}}',
    'deep': b'[' * 100_000,
    'html': b'<!DOCTYPE html><html>\x1b[31m</html>',
    'lfs': b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n',
    'escape': b'{"\x1b[2J\\u001b[31m": "\\u001b]0;x\\u0007"}',
    'gone': None,
    'pipe': None,
    'folder': None,
}


def _damage(file, kind):
  if file.is_dir():
    shutil.rmtree(file)
  else:
    file.unlink()
  if kind == 'pipe':
    os.mkfifo(file)
  elif kind == 'folder':
    file.mkdir()
  elif _INSTEAD[kind] is not None:
    file.write_bytes(_INSTEAD[kind])


@pytest.fixture(scope='module', name='whole')
def _whole(tmp_path_factory):
  """A base in both formats, a run on it, and its PEFT folder."""
  path = tmp_path_factory.mktemp('whole')
  base = models.base(cut=models.one_layer, dtype=jnp.float32)
  model = g4.nn.LoRA(rank=2, targets=['q', 'down'], model=base)
  run = trained.Run(path, model)
  g4.hf.save_peft(path / 'peft', model=model, params=run.params)
  run.export(path / 'hf', format='hf', workdir=None, model=base)
  return path, run.released.name, run.workdir.name


@pytest.fixture(name='there')
def _there(whole, tmp_path):
  """A copy of it, to be damaged."""
  path, *names = whole
  shutil.copytree(path, tmp_path / 'x')
  return (tmp_path / 'x', *names)


def _args(command, there):
  path, released, workdir = there
  base = path / ('hf' if command == 'fuse_hf' else released)
  config = path / 'config.py'
  config.write_text(_CONFIG.replace('{path}', os.fspath(base)))
  cfg, workdir = f'--cfg={config}', f'--cfg.workdir={path / workdir}'
  out, peft = f'--out={path / "out"}', f'--peft={path / "peft"}'
  return {
      'fuse': ('fuse', cfg, workdir, out),
      'fuse_hf': ('fuse', cfg, workdir, out),
      'quantize': ('quantize', cfg, '--cfg.model.quantize=int8', out),
      'export': ('export', cfg, workdir, out),
      'check': ('check', cfg, workdir),
      'chat': ('chat', cfg, workdir),
      'check_peft': ('check', cfg, workdir, peft),
      'chat_peft': ('chat', cfg, peft),
  }[command]


def _is_shown(text):
  return all(c.isprintable() or c in '\n\t' for c in text)


# Files, and the commands that read them. All of them share their readers: it is
# enough that each has met some damage.
_READ_BY = {
    '{released}/_METADATA': ['fuse', 'quantize'],
    '{released}/manifest.ocdbt': ['fuse'],
    '{step}/fingerprint/metadata': ['check', 'chat', 'export'],
    '{step}/default/_METADATA': ['export', 'fuse', 'check'],
    'peft/adapter_config.json': ['chat_peft', 'check_peft'],
    'peft/adapter_model.safetensors': ['check_peft', 'chat_peft'],
    'hf/model.safetensors': ['fuse_hf'],
}
_CASES = [
    (commands[i % len(commands)], name, kind)
    for name, commands in _READ_BY.items()
    for i, kind in enumerate(_INSTEAD)
]


@pytest.mark.parametrize(('command', 'name', 'kind'), _CASES)
def test_a_damaged_file_is_a_line(command, name, kind, there, run_command):
  path, released, workdir = there
  (step,) = (path / workdir / 'checkpoints').iterdir()
  file = path / name.format(released=released, step=step.relative_to(path))
  assert file.exists()
  _damage(file, kind)
  done = run_command(*_args(command, there))
  assert done.returncode == 1
  said = done.stdout if 'PROBLEM' in done.stdout else done.stderr
  # Without the lines that say what it does.
  lines = [x for x in said.splitlines() if not x.endswith(' …')]
  problem, *rest = lines
  assert not rest or command == 'check_peft' and rest[0].startswith('NOT OK')
  assert 'Traceback' not in done.stdout + done.stderr
  assert _is_shown(done.stdout + done.stderr)
  # The file, or what it is a part of.
  assert any(os.fspath(x) in problem for x in [file, *file.parents[:3]])
  assert not (path / 'out').exists()


def test_names_in_files_cannot_move_the_cursor(there, run_command):
  path, *_ = there
  for file, command in (
      (path / 'peft' / 'adapter_model.safetensors', 'check_peft'),
      (path / 'hf' / 'model.safetensors', 'fuse_hf'),
  ):
    tensors = safetensors.numpy.load_file(file)
    first = next(iter(tensors))
    tensors[first + '.\x1b[31m\x07'] = tensors.pop(first)
    safetensors.numpy.save_file(tensors, file)
    done = run_command(*_args(command, there))
    assert done.returncode == 1
    assert r'\x1b[31m\x07' in done.stdout + done.stderr
    assert _is_shown(done.stdout + done.stderr)
