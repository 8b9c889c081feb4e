"""A run of two hosts, in `two_hosts_config.py` and in one process alike."""

from collections.abc import Mapping
import dataclasses
import os
import runpy
import sys
from typing import Any

import jax
import jax.numpy as jnp
from kauldron import kd
import optax

from gemma4_lora import g4
from tests.lib import models
from tests.lib import runs


def base_model() -> Any:
  return models.base(cut=models.one_layer, dtype=jnp.float32)


def trainer(
    *,
    workdir: Any,
    released: Any,
    num_train_steps: int,
    save_interval_steps: int = 1,
    evaluates_at: int = -1,
) -> kd.train.Trainer:
  """Returns a trainer whose numbers do not hang on the number of hosts.

  A batch of one process and the batches of two hold the same examples, in
  another order. SGD is linear in what that does to the rounding of gradients.

  Args:
    workdir: Where it saves.
    released: Path of the base.
    num_train_steps: When it stops.
    save_interval_steps: How often it saves.
    evaluates_at: Before which step it begins an evaluation that has no end.
  """
  fsdp = kd.sharding.FSDPSharding(min_size_to_shard_mb=0)
  made = runs.trainer(
      workdir,
      released,
      base=base_model(),
      lora={'targets': 'attention'},  # Half as much to compile, four times.
      num_train_steps=num_train_steps,
      optimizer=runs.partial(optax.sgd(0.1, momentum=0.9)),
      options={
          'max_to_keep': 2,
          'save_interval_steps': save_interval_steps,
      },
      sharding=kd.sharding.ShardingStrategy(params=fsdp, opt_state=fsdp),
      trainstep=g4.train.TrainStep(),
      writer=g4.train.TerminalWriter(),
  )
  made = made.replace(
      train_ds=dataclasses.replace(made.train_ds, shuffle=False)
  )
  if evaluates_at < 0:
    return made
  endless = _Evaluator(run=kd.evals.Once(step=evaluates_at), ds=made.train_ds)
  return made.replace(evals={'endless': endless})


class _Evaluator(kd.evals.Evaluator):
  """Prints a line before each batch."""

  def step(self, **kwargs: Any) -> Any:
    print(f'{self.name}: a batch', flush=True)
    return super().step(**kwargs)


def run_command(
    argv: list[str],
    environment: Mapping[str, str],
    log: str,
    module: str = 'gemma4_lora',
):
  """Is `python -m gemma4_lora` with these arguments, in a process of its own.

  Args:
    argv: After the module's name.
    environment: What is added to it.
    log: File for all that the process prints.
    module: In the place of `gemma4_lora`.
  """
  with open(log, 'w') as file:
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
  os.environ.update(environment)
  # jax has read its variables: the fork server that imported it may have been
  # started by another test.
  for name, read in (
      ('jax_num_cpu_devices', int),
      ('jax_compilation_cache_dir', lambda x: x or None),
  ):
    if name.upper() in environment:
      jax.config.update(name, read(environment[name.upper()]))
  sys.argv = [module, *argv]
  runpy.run_module(module, run_name='__main__', alter_sys=True)
