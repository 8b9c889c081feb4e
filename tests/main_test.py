"""Commands, as a shell runs them."""

import os
import pathlib
import subprocess
import sys

from gemma import gm
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4_lora import g4
from tests.ckpts import export_test

_ROOT = pathlib.Path(__file__).parent.parent
_CONFIG = '--cfg=configs/gemma4_e2b_lora_mtnt.py'


def _run(*args):
  return subprocess.run(
      [sys.executable, '-m', 'gemma4_lora', *args],
      cwd=_ROOT,
      capture_output=True,
      text=True,
      check=False,
  )


def test_summary_of_a_config_with_an_override():
  done = _run('summary', _CONFIG, '--cfg.model.rank=8')
  assert done.returncode == 0, done.stderr
  assert '13,166,592 trainable' in done.stdout  # Half of rank 16.


_RUN_CONFIG = """
from kauldron import konfig

with konfig.imports():
  from gemma import gm
  from jax import numpy as jnp
  from kauldron import kd
  from gemma4_lora import g4


def get_config():
  model = g4.nn.LoRA(
      rank=2,
      targets="q",
      model=g4.testing.Gemma4_31B(tokens="batch.input", dtype=jnp.float32),
  )
  return kd.train.Trainer(
      train_ds=kd.data.py.DataSource(data_source="not at hand here"),
      model=model,
      init_transform=g4.ckpts.SkipLoRA4(
          wrapped=gm.ckpts.LoadCheckpoint(path="{path}"),
      ),
  )
"""


@pytest.fixture(scope='module', name='run')
def _trained(tmp_path_factory):
  """A run, and the config of it."""
  path = tmp_path_factory.mktemp('run')
  # In float32: the random LoRA is larger than the base, and what bfloat16
  # rounds of their sum is larger than `check` allows.
  base = g4.testing.Gemma4_31B(tokens='batch.input', dtype=jnp.float32)
  model = g4.nn.LoRA(rank=2, targets='q', model=base)
  run = export_test.Run(path, model)
  config = path / 'config.py'
  config.write_text(_RUN_CONFIG.replace('{path}', os.fspath(run.released)))
  return run, (f'--cfg={config}', f'--cfg.workdir={run.workdir}')


def test_fuse_a_run(run, tmp_path):
  run, cfg = run
  out = tmp_path / 'out'
  out.mkdir()
  done = _run('fuse', *cfg, f'--out={out}', '--overwrite', '--step=3')
  assert done.returncode == 0, done.stderr
  assert 'LoRA in 6 of them' in done.stdout
  got = gm.ckpts.load_params(out)['layer_5']['attn']['q_einsum']['w']
  want = g4.nn.fuse_params(run.model, run.params)
  want = want['layer_5']['attn']['q_einsum']['w']
  np.testing.assert_array_equal(np.asarray(got), np.asarray(want))


def test_export_a_run_as_peft(run, tmp_path):
  run, cfg = run
  done = _run('export', *cfg, f'--out={tmp_path / "lora"}')
  assert done.returncode == 0, done.stderr
  # And it is what it should be.
  checked = _run('check', *cfg, f'--peft={tmp_path / "lora"}')
  assert checked.returncode == 0, checked.stdout + checked.stderr
  assert 'OK: all 6 projections are there' in checked.stdout
  lora = g4.hf.load_peft(tmp_path / 'lora', model=run.model.model)
  jax.tree.map(
      np.testing.assert_array_equal,
      lora.params['layer_0']['attn']['q_einsum']['lora'],
      run.params['layer_0']['attn']['q_einsum']['lora'],
  )


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (('fuse', '--format=peft', '--out=x'), "one of ['gemma', 'hf']"),
        (('fuse', '--out=x'), '--cfg.workdir=... is missing'),
        (('export',), '--out=... is missing'),
    ],
)
def test_what_a_command_lacks(args, message):
  done = _run(*args, _CONFIG)
  assert done.returncode != 0
  assert message in done.stdout + done.stderr


def test_a_misspelt_command():
  done = _run('sumary', _CONFIG)
  assert done.returncode != 0
  assert "Did you mean 'summary'?" in done.stdout + done.stderr


def test_without_a_config():
  done = _run('summary')
  assert done.returncode != 0
  assert '--cfg=... is missing' in done.stdout + done.stderr
