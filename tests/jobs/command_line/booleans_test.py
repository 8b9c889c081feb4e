"""What the command line sets without a value is a boolean."""

import pytest

from gemma4_lora.jobs.command_line import _config
from gemma4_lora.jobs.command_line import _config_file

_CONFIG = """
from kauldron import konfig

with konfig.imports():
  from kauldron import kd
  from gemma4_lora import g4


def get_config():
  return kd.train.Trainer(
      seed=0,
      workdir=None,
      model=g4.nn.LoRA(rank=4, model=None, verbose=False),
      evals={'x': [1, True]},
  )
"""


@pytest.fixture(name='load')
def _load(tmp_path):
  file = tmp_path / 'config.py'
  file.write_text(_CONFIG)
  return lambda *flags: _config.load(str(file), overrides=flags).value


def test_booleans_and_what_may_be_one(load):
  cfg = load(
      *('--cfg.model.verbose', '--cfg.model.use_dora', '--nocfg.evals.x[1]'),
      # Has None by default, or no default; is of no class.
      *('--cfg.profiler', '--cfg.train_ds', '--cfg.evals.new'),
  )
  assert cfg.model.verbose is True and cfg.model.use_dora is True
  assert cfg.evals.x[1] is False


@pytest.mark.parametrize(
    ('flag', 'message'),
    [
        ('--cfg.seed', '--cfg.seed lacks a value: write --cfg.seed=0, or'),
        ('--nocfg.seed', '--cfg.seed lacks a value'),
        ('--cfg.model.rank', 'write --cfg.model.rank=4, or another one'),
        ('--cfg.model.dropout', 'write --cfg.model.dropout=0.0, or'),
        ('--cfg.evals.x[0]', 'lacks a value'),
    ],
)
def test_all_else_takes_a_value(load, flag, message):
  with pytest.raises(_config_file.ConfigError) as error:
    load(flag)
  assert message in str(error.value)
