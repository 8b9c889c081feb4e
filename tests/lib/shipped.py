"""The configs of this repository, as their commands make them."""

import dataclasses
import importlib.util
import pathlib
import sys
from unittest import mock

from absl import flags
from kauldron import kd
from kauldron import konfig

from gemma4_lora import g4
from tests.lib import models

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))

SHRINK = "--cfg.__args__.tiny=True"
_MOE = ROOT / "configs" / "gemma4_26b_a4b_lora_no_robots.py"

# What there is to run, by name; all but the one that is tiny by itself.
RUNS = {path.stem: (path,) for path in CONFIGS if path.stem != "quickstart"} | {
    "experts": (_MOE, "--cfg.__args__.experts=True")
}


def module(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def config(path, **args):
  loaded = module(path)
  return loaded.get_config(*([loaded.ConfigArgs(**args)] if args else []))


def resolved(cfg, workdir):
  """Returns the config's trainer; it is one of LoRA, by its parts."""
  cfg.workdir = str(workdir)
  trainer = konfig.resolve(cfg)
  assert isinstance(trainer, kd.train.Trainer)
  assert isinstance(trainer.model, g4.nn.LoRA)
  assert isinstance(trainer.init_transform, g4.ckpts.SkipLoRA4)
  assert isinstance(trainer.trainstep, g4.train.TrainStep)
  return trainer


def by_flags(path, *overrides):
  """Returns the config as `python -m kauldron.main` does."""
  values = flags.FlagValues()
  konfig.DEFINE_config_file("cfg", None, "", flag_values=values)
  argv = ["", f"--cfg={path}", *overrides]
  with mock.patch.object(sys, "argv", argv):  # It looks there for overrides.
    values(argv)
  return values.cfg


def with_fewer_layers(
    trainer,
    folder,
    *,
    cut=models.one_layer,
    light=False,
    targets=None,
    **changes,
):
  """Returns the trainer with fewer layers, and its checkpoint: compile time.

  Args:
    trainer: Of a shrunk config.
    folder: Where to keep the checkpoint.
    cut: Which layers to keep.
    light: Also without what saves memory, which takes long to compile.
    targets: Those of LoRA, if not the config's.
    **changes: Of the base model.
  """
  base = cut(trainer.model.model).clone(**changes)
  lora = trainer.model.clone(model=base)
  if light:
    lora = lora.clone(remat="none", attention="gemma")
  if targets:
    lora = lora.clone(targets=targets)
  load = trainer.init_transform.wrapped
  path = dataclasses.replace(load.path, model=base, folder=folder)
  load = dataclasses.replace(load, path=path)
  return dataclasses.replace(
      trainer,
      model=lora,
      init_transform=dataclasses.replace(trainer.init_transform, wrapped=load),
  )


def writer_to(values):
  """Returns a writer that keeps what is logged of the steps."""

  class Writer(kd.train.metric_writer.NoopWriter):

    def write_step_metrics(self, *, aux, **kwargs):
      del kwargs
      values.append(aux.compute())

  return Writer()
