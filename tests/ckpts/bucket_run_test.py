"""A Trainer whose workdir is in a bucket."""

import dataclasses
import os
import pathlib
import signal
import time
from typing import Any
from unittest import mock

from etils import epath
import jax
import jax.numpy as jnp
from kauldron import kd
import numpy as np
import pytest

from gemma4_lora import g4
from gemma4_lora.host import _stop_signals
from tests.lib import models
from tests.lib import random_params
from tests.lib import runs

_STEPS = 4
_BASE = models.base(cut=models.one_layer, dtype=jnp.float32)


@dataclasses.dataclass(frozen=True, eq=True, kw_only=True)
class _PreemptedWriter(g4.train.TerminalWriter):
  """Is told to stop in step 1."""

  def write_scalars(self, step, scalars):
    super().write_scalars(step, scalars)
    if step == 1 and self.collection == 'train':
      os.kill(os.getpid(), signal.SIGTERM)


def _trainer(workdir, released, *, writer=g4.train.TerminalWriter, lora=True):
  made = runs.trainer(
      workdir,
      released,
      base=_BASE,
      lora={'targets': 'attention'},
      num_train_steps=_STEPS,
      options={'save_interval_steps': 3},
      writer=writer(),
  )
  if not lora:
    made = made.replace(
        checkpointer=g4.ckpts.Checkpointer(save_interval_steps=3)
    )

  def evaluator(run):
    return kd.evals.Evaluator(
        run=run,
        ds=dataclasses.replace(made.train_ds, shuffle=False, num_epochs=1),
        num_batches=1,
        losses=made.train_losses,
        metrics={},
    )

  return made.replace(
      evals={
          'along': evaluator(kd.evals.EveryNSteps(2)),
          # Their default executor is not on PyPI.
          'alone': evaluator(kd.evals.StandaloneEveryCheckpoint(executor=None)),
      }
  )


def _run(buckets: Any, local: pathlib.Path) -> None:
  """All that a job does in a bucket, in a process that sees one."""
  released = local / 'released'
  whole, _ = _trainer(local / 'whole', released).train()
  for lora in (True, False):
    workdir = f'gs://trained/{"lora" if lora else "all"}'
    kwargs = dict(workdir=workdir, released=released, lora=lora)
    # What a run left that was killed while it saved: no file commits it.
    half = epath.Path(workdir) / 'checkpoints' / 'ckpt_3' / 'default' / 'x'
    half.parent.mkdir(parents=True)
    half.write_text('half')
    with pytest.raises(_stop_signals.Stopped):
      _trainer(**kwargs, writer=_PreemptedWriter).train()
    assert _trainer(**kwargs).checkpointer.all_steps == [0, 2]
    got, _ = _trainer(**kwargs).train()
    assert _trainer(**kwargs).checkpointer.all_steps == [0, 2, 3]
    jax.tree.map(np.testing.assert_array_equal, got, whole)
    aux = _trainer(**kwargs).continuous_eval('alone')['alone']
    loss = aux.compute(flatten=False).loss_values['xent']
    assert np.isfinite(loss)
    # The network is gone while it resumes; Orbax would try for long.
    buckets.fail('ckpt_3.*default.*alt=media', status=503)
    start = time.monotonic()
    with (
        mock.patch.dict(os.environ, {'GEMMA4_LORA_BUCKET_TIMEOUT': '2'}),
        pytest.raises(
            ConnectionError,
            match=f'Checkpointer: {workdir}/.*cannot be reached',
        ),
    ):
      _trainer(**kwargs).train()
    assert time.monotonic() - start < 60
    buckets.heal()
    # The network, or a role, is gone while it saves: nothing can be listed.
    ckpt = _trainer(**kwargs).checkpointer
    ckpt.save(got, step=6, force=True)
    ckpt.wait_until_finished()
    buckets.fail(status=403)
    with pytest.raises(
        PermissionError,
        match=f'Checkpointer: {workdir}/checkpoints: your account may not write'
        r' there\. .* The last complete checkpoint there: step 6\.',
    ):
      ckpt.save(got, step=7, force=True)
      ckpt.wait_until_finished()
    buckets.heal()


def test_it_is_preempted_and_resumed_and_evaluated(buckets, tmp_path):
  """Bit for bit the run on a disk, and as whole."""
  released = tmp_path / 'released'
  params = random_params.make(_BASE)
  g4.testing.make_checkpoint(_BASE, released, params=params)
  buckets.make('trained')
  buckets.call(_run, buckets, tmp_path)
  for name in ('lora', 'all'):
    run = buckets.folder('trained') / name
    names = {x.name for x in run.iterdir()}
    assert names >= {
        'checkpoints',
        'train',
        'along',
        'alone',
        'element_spec.json',
        'train_complete.txt',
    }
    assert 'train_owner.json' not in names
    steps = {x.name for x in (run / 'checkpoints').iterdir()}
    assert {x for x in steps if x.startswith('ckpt')} == {
        'ckpt_0',
        'ckpt_2',
        'ckpt_3',
        'ckpt_6',
    }
    assert not (run / 'checkpoints' / 'ckpt_3' / 'default' / 'x').exists()
    assert list((run / 'train').glob('events*'))
  # Nothing went to a folder called `gs:`.
  assert not pathlib.Path('gs:').exists()
