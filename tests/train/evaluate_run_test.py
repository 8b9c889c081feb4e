"""The evaluators of a run, on one of its checkpoints."""

from typing import Any

import jax.numpy as jnp
from kauldron import kd
import numpy as np
import pytest

from gemma4_lora import g4
from gemma4_lora.train import _evaluate_run
from tests.lib import models
from tests.lib import runs
from tests.lib import training


class _Own(kd.evals.EvaluatorBase):
  """Writes what it sees of a state, and compiles nothing."""

  text: str = ''

  def evaluate(self, state: Any, step: int) -> None:
    b = state.params['layer_0']['attn']['q_einsum']['lora']['q']['b']
    mean = jnp.mean(b)
    self.writer.write_scalars(
        step,
        {
            'losses/xent': mean,
            'losses/total': mean,
            'metrics/step': int(state.step),
            'perf_stats/x': 1.0,
        },
    )
    if self.text:
      texts = np.array([self.text], object)
      self.writer.write_texts(step, {'summaries/answer': texts})


@pytest.fixture(name='trainer')
def _trainer(tmp_path):
  """A trainer whose run has two checkpoints."""

  def make():
    run = kd.evals.EveryNSteps(n=1)
    return training.make_trainer(
        models.lora(cut=models.one_layer, rank=2),
        tmp_path,
        num_train_steps=0,
        checkpointer=g4.ckpts.Checkpointer(save_interval_steps=1),
        evals={'own': _Own(run=run), 'texts': _Own(run=run, text='Oui.\n\x1b')},
    )

  saving = make()
  for step in (1, 2):
    saving.checkpointer.save(runs.state(saving, seed=step), step=step)
  saving.checkpointer.wait_until_finished()
  saving.checkpointer.close()
  return make()


def _mean(trainer, step):
  params: Any = runs.state(trainer, seed=step).params
  return float(
      jnp.mean(params['layer_0']['attn']['q_einsum']['lora']['q']['b'])
  )


def test_the_last_checkpoint_or_another_is_evaluated(trainer, tmp_path):
  before = sorted(tmp_path.rglob('*'))
  said = _evaluate_run.of_trainer(trainer, names=['own'])
  assert said.splitlines() == [
      f'step 2 of {tmp_path}',
      'evaluator  metric    value',
      f'own        xent    {_mean(trainer, 2):7.4f}',
      'own        step     2.0000',
  ]
  said = _evaluate_run.of_trainer(trainer, names=['own', 'texts'], step=1)
  assert f'step 1 of {tmp_path}' in said
  assert f' {_mean(trainer, 1):.4f}\n' in said
  assert said.endswith('\ntexts:\n    answer  Oui.⏎\\x1b')
  assert sorted(tmp_path.rglob('*')) == before


def test_what_is_not_there_is_an_error(trainer, tmp_path):
  with pytest.raises(FileNotFoundError, match=r'--step=7 is not in .*\[1, 2\]'):
    _evaluate_run.of_trainer(trainer, names=['own'], step=7)
  none = trainer.replace(checkpointer=kd.ckpts.NoopCheckpointer())
  with pytest.raises(ValueError, match='has no checkpointer='):
    _evaluate_run.of_trainer(none, names=['own'])
  with pytest.raises(FileNotFoundError, match='no checkpoint in'):
    _evaluate_run.evaluate(_Config(tmp_path / 'none'))
  with pytest.raises(ValueError, match='evals= is empty'):
    _evaluate_run.evaluate({'evals': None})


class _Config(dict):
  """A config, as far as it is looked at."""

  def __init__(self, workdir):
    super().__init__(evals={'own': None})
    self.workdir = workdir
