"""Time and memory of `init` and restore, against the file format's library.

```sh
uv run --extra dev python -m tests.benchmarks.restore
```

writes a checkpoint of 4 GB in E2B's proportions (half of it is the table of
per-layer embeddings) in the released layout and as safetensors of Hugging Face,
and prints, for each way to read it: seconds, over those that the library itself
takes to read and decode the same leaves once; and the peak of resident memory,
over the size of the checkpoint. `--parts` gives the shares of time.

Every row is a process of its own, whose memory is measured from outside. The
libraries' row is only imports: what any of them takes. Before each row the
files are dropped from the page cache, or read into it with `--warm`.
"""

import argparse
import dataclasses
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

_DTYPE_BYTES = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """What one process took.

  Attributes:
    name: What it did.
    seconds: That it took, imports left out.
    peak_gb: Its peak of resident memory.
    against: Name of the row that its time is compared with.
  """

  name: str
  seconds: float
  peak_gb: float
  against: str | None


def model_of(gb: float) -> Any:
  """Returns a model in E2B's proportions.

  Args:
    gb: Size of its checkpoint: 9.3 would be E2B itself. 0 for a tiny model.
  """
  from gemma import gm
  from gemma4_lora import g4
  
  if not gb:
    return g4.testing.Gemma4_E2B(tokens='batch.input')
  model = gm.nn.Gemma4_E2B(tokens='batch.input', text_only=True)
  ratio = gb / 9.3
  width = 128 * round(1536 * ratio**0.5 / 128)
  config = dataclasses.replace(
      model.config,
      embed_dim=width,
      hidden_dim=4 * width,
      override_kv_shared_ffw_hidden=8 * width,
      per_layer_input_dim=8 * round(256 * ratio / 8),
  )
  return model.clone(config=config)


def write(gb: float, folder: pathlib.Path) -> None:
  """Writes the checkpoint as Orbax and as safetensors."""
  from gemma4_lora import g4
  from gemma4_lora.hf import _shards
  import numpy as np

  made = g4.testing.make_checkpoint(model_of(gb), folder / 'orbax')
  del made


def read_orbax(folder: pathlib.Path) -> None:
  """Reads and decodes all leaves by Orbax, all at once."""
  import jax
  import numpy as np
  import orbax.checkpoint as ocp

  path = folder / 'orbax'
  handler = ocp.PyTreeCheckpointHandler(restore_concurrent_gb=2**20)
  tree = handler.metadata(path).tree
  args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
  handler.restore(path, args=ocp.args.PyTreeRestore(restore_args=args))


def init(folder: pathlib.Path, gb: float, workdir: str) -> None:
  """Makes the state of a run whose base is restored."""
  import jax
  from kauldron import kd

  from gemma4_lora import g4
  from tests import training

  model = g4.nn.LoRA(rank=16, model=model_of(gb))
  trainer = training.make_trainer(
      model,
      workdir,
      num_train_steps=1,
      checkpointer=None,
      trainstep=g4.train.TrainStep(),
      init_transform=g4.ckpts.SkipLoRA4(
          wrapped=g4.ckpts.PartialLoad(path=folder)
      ),
      sharding=kd.sharding.ShardingStrategy(
          params=kd.sharding.FSDPSharding()
      ),
  )
  jax.block_until_ready(trainer.init_state())


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('--gb', type=float, default=4.0)
  parser.add_argument('--folder', type=pathlib.Path)
  parser.add_argument('--child')
  parser.add_argument('--devices', type=int, default=1)
  args = parser.parse_args()
  if args.child:
    child(args)


def child(args) -> None:
  import jax
  jax.config.update('jax_num_cpu_devices', args.devices)
  import kauldron.kd, gemma.gm  
  from gemma4_lora import g4
  g4.train.TrainStep
  from absl import logging
  logging.set_verbosity('info')
  start = time.monotonic()
  if args.child == 'write':
    write(args.gb, args.folder)
  elif args.child == 'orbax':
    read_orbax(args.folder)
  elif args.child == 'init':
    init(args.folder / 'orbax', args.gb, '/tmp/nowhere')
  print('seconds', time.monotonic() - start, 'cpu', time.process_time(), 'rss', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)


if __name__ == '__main__':
  main()
