"""Hosts of a run without a model, which are told to stop."""

import functools
import itertools
import pathlib
import time
from typing import Any

from etils import epath
import jax
from jax.experimental import multihost_utils
from kauldron import kd
import numpy as np
import orbax.checkpoint as ocp

from gemma4_lora.ckpts import _live_run
from gemma4_lora.ckpts import _stoppable

EVALUATED = 1  # The step of an evaluation that ends.


class _Evaluator(kd.evals.EvaluatorBase):
  """Has batches that are nothing but time, as many as there are at a step."""

  batches: dict[int, int | None]

  @functools.cached_property
  def ds_iter(self) -> Any:
    return itertools.repeat(0.001)

  def evaluate(self, state: Any, step: int) -> None:
    many = self.batches.get(step, 0)
    if many != 0:
      for seconds in itertools.islice(self.ds_iter, many):
        time.sleep(seconds)


def train(
    address: str,
    index: int,
    folder: pathlib.Path,
    batches: dict[int, int | None],
    says: Any,
) -> None:
  """Is one of two hosts: trains until it is told to stop.

  Args:
    address: Address of host 0.
    index: Number of this host.
    folder: The workdir.
    batches: How many batches this host evaluates at a step; None for no end.
    says: End of a pipe: gets each step before its evaluation, and `stopped`.
  """
  jax.config.update('jax_num_cpu_devices', 1)
  jax.distributed.initialize(address, num_processes=2, process_id=index)
  run = _live_run.LiveRun(epath.Path(folder), who='T')
  run.train(lambda: None, first_step=0)
  evaluator = _Evaluator(run=kd.evals.EveryNSteps(1), batches=batches)
  _stoppable.make([evaluator], run.asked_to_stop, at_end=run.meet)
  manager = _live_run.CheckpointManager(
      directory=folder,
      options=ocp.CheckpointManagerOptions(save_interval_steps=1),
  )
  for step in itertools.count():
    says.send(step)
    evaluator.maybe_eval(step=step, state=None)
    manager.should_save(step)  # Orbax looks for a sync point, too.
    if run.asked_to_stop():
      break
    # Hosts train in lockstep.
    multihost_utils.process_allgather(np.asarray(step))
    time.sleep(0.01)
  says.send('stopped')
