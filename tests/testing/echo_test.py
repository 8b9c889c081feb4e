"""Tests of the checkpoint that is made on first use."""

import os

from gemma import gm
import jax
import numpy as np
import pytest

from gemma4_lora import g4

_STEPS = 2


@pytest.fixture(scope="module")
def echo(tmp_path_factory):
  folder = tmp_path_factory.mktemp("echo")
  echo = g4.testing.EchoCheckpoint(steps=_STEPS, folder=folder)
  assert not echo.path.exists()
  os.fspath(echo)
  return echo


def test_it_is_a_released_layout_that_gemma_itself_reads(echo):
  params = gm.ckpts.load_params(echo)
  model = g4.testing.Gemma4_E2B(tokens="batch.input")
  assert params["layer_0"]["mlp"]["linear"]["w"].dtype == model.dtype
  embedding = params["embedder"]["input_embedding"]
  assert embedding.shape == (model.config.num_embed, model.config.embed_dim)


def test_a_second_use_reads_what_the_first_made(echo, capsys):
  before = echo.path.stat().mtime
  again = g4.testing.EchoCheckpoint(steps=_STEPS, folder=echo.folder)
  assert os.fspath(again) == os.fspath(echo)
  assert "training" not in capsys.readouterr().out
  assert echo.path.stat().mtime == before
  assert [x.name for x in echo.path.parent.iterdir()] == [echo.path.name]


def test_training_is_deterministic(echo, tmp_path):
  other = g4.testing.EchoCheckpoint(steps=_STEPS, folder=tmp_path)
  assert echo.path.name == other.path.name
  jax.tree.map(
      np.testing.assert_array_equal,
      gm.ckpts.load_params(echo),
      gm.ckpts.load_params(other),
  )


def test_other_settings_are_another_checkpoint(echo):
  other = g4.testing.EchoCheckpoint(steps=_STEPS + 1, folder=echo.folder)
  assert other.path != echo.path


def test_no_step_is_an_error():
  with pytest.raises(ValueError, match="steps=0 must be positive"):
    g4.testing.EchoCheckpoint(steps=0)
