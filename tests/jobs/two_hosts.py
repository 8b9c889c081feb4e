"""A run of two hosts, in `two_hosts_config.py` and in one process alike."""

import dataclasses
from typing import Any

from kauldron import kd
import optax

from gemma4_lora import g4
from tests.ckpts import runs


def trainer(
    *, workdir: Any, released: Any, num_train_steps: int
) -> kd.train.Trainer:
  """Returns a trainer whose numbers do not hang on the number of hosts.

  A batch of one process and the batches of two hold the same examples, in
  another order. SGD is linear in what that does to the rounding of gradients.

  Args:
    workdir: Where it saves.
    released: Path of the base.
    num_train_steps: When it stops.
  """
  fsdp = kd.sharding.FSDPSharding(min_size_to_shard_mb=0)
  made = runs.trainer(
      workdir,
      released,
      num_train_steps=num_train_steps,
      optimizer=runs.partial(optax.sgd(0.1, momentum=0.9)),
      options={'max_to_keep': 2},
      sharding=kd.sharding.ShardingStrategy(params=fsdp, opt_state=fsdp),
      trainstep=g4.train.TrainStep(),
      writer=g4.train.TerminalWriter(),
  )
  return made.replace(
      train_ds=dataclasses.replace(made.train_ds, shuffle=False)
  )
