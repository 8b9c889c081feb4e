"""Runs in Kauldron's Trainer that save LoRA alone."""

import re

from gemma import gm
import jax
from kauldron import kd
import numpy as np
import pytest

from gemma4_lora import g4
from tests.lib import models
from tests.lib import runs
from tests.lib import training


@pytest.mark.parametrize(
    ('lora', 'steps'),
    [
        ({'init_lora_weights': 'pissa', 'dropout': 0.1}, (1, 3, 4)),
        # No base to restore: it comes from the seed again.
        (None, (1, 2)),
    ],
    ids=['pissa', 'random base'],
)
def test_cut_at_any_step_is_the_whole(lora, steps, tmp_path):
  base = models.base(cut=models.one_layer)
  released = None
  if lora:
    released = tmp_path / 'released'
    g4.testing.make_checkpoint(base, released)

  def run(workdir, num_train_steps):
    made = runs.trainer(
        tmp_path / workdir,
        released,
        base=base,
        lora=lora,
        num_train_steps=num_train_steps,
        trainstep=training.SharedStep(key=str(tmp_path)),
    )
    return made.train()[0]

  whole = run('whole', steps[-1])
  for num_train_steps in steps:
    cut = run('cut', num_train_steps)
  assert jax.tree.structure(cut) == jax.tree.structure(whole)
  jax.tree.map(np.testing.assert_array_equal, cut, whole)


def test_continuous_evaluation(tmp_path, capsys):
  """Another job's evaluators read the checkpoints, base and all."""
  released = tmp_path / 'released'
  base = models.base(cut=models.one_layer)
  g4.testing.make_checkpoint(base, released)
  ds = kd.data.py.DataSource(
      data_source=training.RandomTokens(num_examples=8),
      shuffle=False,
      batch_size=8,
      num_epochs=1,
      num_workers=0,
  )
  sentences = kd.data.py.DataSource(
      data_source=g4.testing.EnFrPairs(split='test'),
      shuffle=False,
      num_epochs=1,
      num_workers=0,
      transforms=[
          g4.data.ChatTask(
              in_prompt='en',
              in_response='fr',
              tokenizer=g4.testing.Gemma4Tokenizer(),
              max_length=48,
              sampling=True,
          )
      ],
  )
  # The default executor is not on PyPI.
  every = kd.evals.StandaloneEveryCheckpoint(executor=None)
  made = runs.trainer(
      tmp_path / 'run',
      released,
      base=base,
      lora={'targets': 'attention'},
      num_train_steps=3,
      options={'save_interval_steps': 3},
      writer=g4.train.TerminalWriter(),
      evals={
          'inline': kd.evals.Evaluator(run=kd.evals.EveryNSteps(n=3), ds=ds),
          'every': kd.evals.Evaluator(run=every, ds=ds),
          'sampling': gm.evals.SamplerEvaluator(
              run=every,
              ds=sentences,
              num_batches=1,
              max_new_tokens=2,
              cache_length=64,
              pad_length=32,
          ),
      },
  )
  made.train()
  inline = dict(
      re.findall(r'step +(\d+) +inline +(.*)', capsys.readouterr().out)
  )
  made.checkpointer.close()

  again = runs.trainer(
      tmp_path / 'run',
      released,
      base=base,
      lora={'targets': 'attention'},
      options={'save_interval_steps': 3},
      writer=g4.train.TerminalWriter(),
      evals=made.evals,
  )
  aux = again.continuous_eval(['every', 'sampling'])
  out = capsys.readouterr().out
  assert aux.keys() == {'every', 'sampling'}
  assert re.findall(r'step +(\d+) +every +(.*)', out) == [('3', inline['3'])]
  assert inline['0'] != inline['3']
  assert re.search(r'step +3 +sampling +\n(?s:.*)answer', out)
