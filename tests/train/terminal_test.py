"""Tests of what a run shows in a terminal."""

from absl import logging
from kauldron import kd
import numpy as np
import pytest
import tensorflow as tf

from gemma4_lora import g4
from gemma4_lora.train import _terminal
from tests.lib import events


@pytest.fixture
def writer(tmp_path):
  return g4.train.TerminalWriter(workdir=tmp_path, collection="eval")


def test_losses_and_metrics_are_printed_and_nothing_else(writer, capsys):
  scalars = {
      "losses/xentropy": np.float32(1.5),
      "metrics/accuracy": 0.25,
      "perf_stats/steps_per_sec": 3.0,
  }
  writer.write_scalars(20, scalars)
  writer.write_scalars(21, {"perf_stats/steps_per_sec": 3.0})
  out = capsys.readouterr().out
  assert out == "step    20  eval      xentropy  1.5000  accuracy  0.2500\n"


_SCALARS = {
    "losses/xentropy": np.float32(1.5),
    "losses/total": np.float32(1.5),
    "schedules/learning_rate": 1e-4,
    "metrics/grad_norm": 0.25,
    "perf_stats/peak_memory_gib": 12.5,
    "perf_stats/steps_per_sec": 2.0,
}
_KNOWN_LATER = {
    "perf_stats/tokens_per_step": 1000.0,
    "perf_stats/trained_tokens_per_step": 250.5,
    "perf_stats/hours_left": 1.51,
}


def test_a_line_of_the_training_has_what_the_step_says(writer, capsys):
  writer.write_scalars(0, _SCALARS)
  writer.write_scalars(5, _SCALARS | _KNOWN_LATER)
  first, second = capsys.readouterr().out.splitlines()
  assert first == (
      "step     0  eval      xentropy  1.5000  lr 1.00e-04  grad   0.250"
      "  peak  12.50 GiB"
  )
  assert second == first.replace("     0", "     5", 1) + (
      "      2,000 tokens/s        501 trained/s  1:30:36 left"
  )


def test_one_loss_is_one_chart(writer, tmp_path):
  writer.write_scalars(0, _SCALARS | _KNOWN_LATER)
  two = {"losses/a": 1.0, "losses/b": 2.0, "losses/total": 3.0}
  writer.write_scalars(1, two)
  writer.flush()
  found = events.scalars(tmp_path / "eval")
  steps = {name: set(values) for name, values in found.items()}
  assert steps["losses/xentropy"] == {0}
  assert steps["losses/total"] == {1}
  assert found["perf_stats/tokens_per_sec"] == {0: 2000.0}
  assert steps["schedules/learning_rate"] == {0}


def test_texts_are_printed_example_by_example(writer, capsys):
  texts = {
      "summaries/answer": np.array(["Oui.", "Non."], object),
      "summaries/prompt": np.array(["Yes.\n", "No.\n"], object),
      "config": "a description of the run",
  }
  writer.write_texts(20, texts)
  assert capsys.readouterr().out.splitlines() == [
      "step    20  eval      ",
      "    prompt  Yes.⏎",
      "    answer  Oui.",
      "    prompt  No.⏎",
      "    answer  Non.",
  ]


def test_descriptions_of_the_run_are_not_printed(writer, capsys):
  writer.write_texts(0, {"config": "a description of the run"})
  assert not capsys.readouterr().out


def test_it_is_kauldrons_writer_for_tensorboard(writer, tmp_path):
  assert isinstance(writer, kd.train.KDMetricWriter)
  writer.write_scalars(20, {"losses/xentropy": 1.5})
  writer.write_texts(20, {"summaries/answer": np.array(["Oui."], object)})
  writer.flush()
  (path,) = (tmp_path / "eval").glob("events.out.tfevents.*")
  events = tf.compat.v1.train.summary_iterator(str(path))
  tags = {value.tag for event in events for value in event.summary.value}
  assert tags == {"losses/xentropy", "summaries/answer"}


@pytest.fixture
def quiet(tmp_path):
  trainer = kd.train.Trainer(
      train_ds=None, model=None, optimizer=None, workdir=tmp_path / "workdir"
  )
  g4.train.QuietSetup().run(trainer)
  yield trainer
  logging.get_absl_handler().removeFilter(_terminal._is_ours_or_warning)


@pytest.mark.parametrize(
    "pathname, level, is_shown",
    [
        (_terminal.__file__, logging.INFO, True),
        (logging.__file__, logging.INFO, False),
        (logging.__file__, logging.WARNING, True),
    ],
)
def test_quiet_setup_hides_the_log_of_others(quiet, pathname, level, is_shown):
  record = logging.get_absl_logger().makeRecord(
      "absl",
      logging.converter.absl_to_standard(level),
      pathname,
      1,
      "",
      (),
      None,
  )
  assert bool(logging.get_absl_handler().filter(record)) == is_shown


def test_quiet_setup_is_a_setup(quiet):
  assert quiet.workdir.is_dir()
