"""Every config builds, survives JSON and resolves; the quickstart runs."""

import dataclasses
import json
import math
import re

from gemma import gm
from kauldron import konfig
import numpy as np
import pytest
import tensorflow as tf

from gemma4_lora import g4
from tests.lib import shipped
from tests.lib import training

with konfig.imports():
  from gemma4_lora import g4 as lazy
  from tests.lib import models as lazy_models

_ROOT = shipped.ROOT
_CONFIGS = shipped.CONFIGS

_every_config = pytest.mark.parametrize(
    "path", _CONFIGS, ids=lambda path: path.stem
)


def test_there_are_configs():
  assert {p.stem for p in _CONFIGS} >= {
      "quickstart",
      "gemma4_e2b_lora_mtnt",
      "gemma4_e4b_lora_no_robots",
      "gemma4_12b_lora_no_robots",
      "gemma4_12b_qlora_no_robots",
      "gemma4_31b_lora_no_robots",
      "gemma4_26b_a4b_lora_no_robots",
      "gemma4_31b_qlora_no_robots",
      "gemma4_26b_a4b_qlora_no_robots",
      "gemma4_e2b_lora_images",
      "gemma4_e2b_dpo",
      "gemma4_e2b_lora_hf_weights",
      "gemma4_e2b_lora_packed",
  }


@_every_config
def test_config_survives_json(path):
  cfg = shipped.config(path)
  again = konfig.ConfigDict(json.loads(cfg.to_json()))
  assert again == cfg
  assert again.to_json() == cfg.to_json()


@_every_config
def test_config_resolves_after_json(path, tmp_path):
  """Without weights, data or network."""
  cfg = konfig.ConfigDict(json.loads(shipped.config(path).to_json()))
  trainer = shipped.resolved(cfg, tmp_path)
  assert trainer.evals
  for name, evaluator in trainer.evals.items():
    is_sampler = isinstance(evaluator, gm.evals.SamplerEvaluator)
    assert is_sampler == (name == "sampling")


@_every_config
def test_config_takes_overrides(path, tmp_path):
  cfg = shipped.config(path)
  cfg.workdir = str(tmp_path)
  cfg.model.rank = 3
  cfg.num_train_steps = 7
  cfg.train_ds.batch_size = 5
  trainer = konfig.resolve(cfg)
  assert trainer.model.rank == 3
  assert trainer.num_train_steps == 7
  assert trainer.train_ds.batch_size == 5


@_every_config
def test_header_says_how_to_run_it_and_what_was_measured(path):
  header = path.read_text(encoding="utf-8").split('"""')[1]
  assert re.search(
      rf"python -m (kauldron.main|gemma4_lora train) --cfg=configs/{path.name}",
      header,
  )
  assert path.stem == "quickstart" or "`--cfg.__args__.tiny=True`" in header
  for column in ("machine", "memory", "time"):
    assert re.search(rf"\| {column} \|", header)


def test_quickstart_trains_evaluates_samples_and_saves(tmp_path, capsys):
  """With overrides that make it short; `.ci/run` runs it as it stands."""
  workdir = tmp_path / "workdir"
  cfg = shipped.by_flags(
      _ROOT / "configs/quickstart.py",
      f"--cfg.workdir={workdir}",
      "--cfg.num_train_steps=2",
      "--cfg.log_metrics_every=1",
      "--cfg.log_summaries_every=1",
      "--cfg.model.rank=4",
      "--cfg.model.targets=('q', 'down')",
      "--cfg.checkpointer.save_interval_steps=2",
      "--cfg.evals.eval.run.n=2",
      "--cfg.evals.sampling.run.n=2",
      "--cfg.evals.sampling.num_batches=2",
  )
  # Five programs of it are compiled: of the smallest model. The notebook
  # `lora_finetuning` has the quickstart's own.
  base = cfg.model.model = lazy_models.one_layer(
      lazy.testing.Gemma4_31B(tokens=cfg.model.model.tokens)
  )
  cfg.init_transform.wrapped.path = lazy.testing.RandomCheckpoint(
      model=base, folder=str(tmp_path / "base")
  )
  konfig.resolve(cfg).train()
  run = capsys.readouterr()

  # What a person sees.
  for step in (0, 2):
    for name in ("train", "eval"):
      assert re.search(rf"step +{step} +{name} .*xentropy +\d", run.out)
    assert re.search(rf"step +{step} +sampling", run.out)
  sampled = re.findall(
      r"prompt  <\|turn>user⏎(.*)<turn\|>⏎<\|turn>model⏎\n"
      r" +gt      (.*)<turn\|>\n +answer  ",
      run.out,
  )
  pairs = [(p["en"], p["fr"]) for p in g4.testing.EnFrPairs(split="test")]
  assert sampled == pairs[:2] * 2
  assert "train: 100%" in run.err  # The progress bar.

  # What is in TensorBoard.
  assert _tags(workdir / "train") >= {"losses/xentropy"}
  for name in ("eval", "eval_base"):
    assert _tags(workdir / name) >= {"losses/xentropy"}
  assert _tags(workdir / "sampling") >= {"summaries/answer"}

  # What the next run needs.
  assert (workdir / "checkpoints" / "ckpt_2").is_dir()
  saved = konfig.ConfigDict(json.loads((workdir / "config.json").read_text()))
  assert saved.model.rank == 4


# What others have compiled with the same settings, and what is tested below.
_LIGHT = ("gemma4_e4b_lora_no_robots", "experts")
_BELOW = (
    "gemma4_e2b_dpo",
    "gemma4_12b_lora_no_robots",
    "gemma4_12b_qlora_no_robots",
)
# Those with the default targets; `gemma4_31b_lora_no_robots` keeps them. Half as many
# linears compile in half the time.
_OF_ALL_LINEARS = (
    "gemma4_31b_qlora_no_robots",
    "gemma4_e2b_lora_hf_weights",
    "gemma4_e2b_lora_images",
    "gemma4_e2b_lora_mtnt",
    "gemma4_e2b_lora_packed",
    "gemma4_e4b_lora_no_robots",
)


@pytest.mark.parametrize("run", [x for x in shipped.RUNS if x not in _BELOW])
def test_tiny_model_trains(run, tmp_path):
  """As the command, in this process: on eight devices, with its own sharding.

  On one layer: those that share keys and values train in `train_test.py`, and with
  these settings in `jobs/rehearsal_test.py`.
  """
  targets = ("q", "down") if run in _OF_ALL_LINEARS else None
  state, losses = _train(run, tmp_path, light=run in _LIGHT, targets=targets)
  values = [x.loss_values["losses/total"] for x in losses]
  assert len(values) == 3 and np.isfinite(values).all()
  assert len(set(map(float, values))) > 1
  leaves = training.flat(state.params)
  moved = [np.any(leaves[x]) for x in leaves if x.endswith(".b")]
  assert moved and np.mean(moved) > 0.9
  assert (tmp_path / "run" / "checkpoints" / "ckpt_2").is_dir()


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_12b_differs_from_31b_by_its_model_and_its_weights(method):
  """So that what trains with one does with the other."""
  cfg, other = (
      json.loads(shipped.config(_ROOT / "configs" / name).to_json())
      for name in (
          f"gemma4_12b_{method}_no_robots.py",
          f"gemma4_31b_{method}_no_robots.py",
      )
  )
  assert cfg["model"].pop("model")["__qualname__"].endswith("Gemma4_12B")
  assert cfg.pop("init_transform")["wrapped"]["path"] == "/tmp/gemma-4-12B-it"
  del other["model"]["model"], other["init_transform"]
  assert cfg == other


def test_dpo_learns_what_is_preferred(tmp_path):
  _, losses = _train(
      "gemma4_e2b_dpo",
      tmp_path,
      "--cfg.num_train_steps=5",
      "--cfg.optimizer['0'].learning_rate=1e-2",
      light=True,
      targets=("q", "down"),
  )
  first, last = losses[0], losses[-1]
  assert first.loss_values["losses/dpo"] == pytest.approx(math.log(2), abs=1e-4)
  assert last.loss_values["losses/dpo"] < first.loss_values["losses/dpo"]
  assert last.metric_values["metrics/accuracy"] > 0.5


def _train(run, folder, *overrides, **changes):
  """Returns the state of a short training, and what was logged."""
  path, *others = shipped.RUNS[run]
  workdir = f"--cfg.workdir={folder / 'run'}"
  cfg = shipped.by_flags(path, shipped.SHRINK, *others, *overrides, workdir)
  losses = []
  trainer = dataclasses.replace(
      shipped.with_fewer_layers(konfig.resolve(cfg), folder, **changes),
      writer=shipped.writer_to(losses),
      evals={},
  )
  state, _ = trainer.train()
  return state, losses


def _tags(folder):
  """Returns the names of what TensorBoard shows for a folder."""
  return {
      value.tag
      for path in folder.glob("events.out.tfevents.*")
      for event in tf.compat.v1.train.summary_iterator(str(path))
      for value in event.summary.value
  }
