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
  """Writes the checkpoint in both formats."""
  from gemma4_lora import g4
  from gemma4_lora import hf
  from gemma4_lora.hf import _shards
  
  params = g4.testing.make_checkpoint(model_of(gb), folder / 'orbax')
  del params


def _read_orbax(path: pathlib.Path) -> None:
  """Reads and decodes all leaves by Orbax, all at once."""
  import numpy as np
  import orbax.checkpoint as ocp
  import jax

  handler = ocp.PyTreeCheckpointHandler(restore_concurrent_gb=2**20)
  tree = handler.metadata(path).tree
  args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
  handler.restore(path, args=ocp.args.PyTreeRestore(restore_args=args))


def _read_file(path: pathlib.Path) -> None:
  """Reads a file from end to end, and keeps nothing."""
  buffer = bytearray(2**24)
  for file in sorted(path.glob('*.safetensors')):
    with file.open('rb', buffering=0) as f:
      while f.readinto(buffer):
        pass
