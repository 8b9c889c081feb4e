"""Time and memory of `init` and restore, against the file format's library.

```sh
uv run --extra dev python -m tests.benchmarks.restore
```

writes a checkpoint of 4.4 GB in E2B's proportions (half of it is the table of
per-layer embeddings), as Orbax and as safetensors, and prints for each way to
read it

* seconds, imports left out, over those that the library takes to read and
  decode the same leaves to the host, once and all at once: Orbax; for
  safetensors, which are not compressed, reading the file from end to end;
* the peak of resident memory, imports included, over the checkpoint's size.

`init` is `trainer.init_state()` with `g4.train.TrainStep`: shapes, LoRA leaves,
the restore, the optimizer's state. Each row is a process of its own, measured
from outside. Before each, the files are dropped from the page cache.
"""

import argparse
from collections.abc import Callable
import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

_SECONDS = 'SECONDS'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
  """What a process took.

  Attributes:
    seconds: Imports left out.
    peak_gb: Resident memory at its peak, as the system has it.
  """

  seconds: float
  peak_gb: float


def model_of(scale: float) -> Any:
  """Returns a model in E2B's proportions.

  Args:
    scale: Size of its checkpoint over E2B's, which is 9.3 GB; 0: a tiny model.
  """
  from gemma import gm

  from gemma4_lora import g4

  if not scale:
    return g4.testing.Gemma4_E2B(tokens='batch.input')
  model = gm.nn.Gemma4_E2B(tokens='batch.input')
  width = 128 * round(12 * scale**0.5)
  config = dataclasses.replace(
      model.config,
      embed_dim=width,
      hidden_dim=4 * width,
      override_kv_shared_ffw_hidden=8 * width,
      per_layer_input_dim=8 * round(32 * scale),
  )
  return model.clone(config=config)


def write(folder: pathlib.Path, scale: float) -> None:
  """Writes the checkpoint as Orbax and as safetensors."""
  from gemma4_lora import g4
  from gemma4_lora.runs import _export

  model = model_of(scale)
  g4.testing.make_checkpoint(model, folder / 'orbax')
  _export.export(
      folder / 'safetensors',
      model=model,
      init_transform=g4.ckpts.PartialLoad(path=folder / 'orbax'),
      workdir=None,
      format='hf',
      who='benchmark',
  )


def orbax(folder: pathlib.Path, scale: float) -> None:
  """Reads and decodes all leaves by Orbax."""
  del scale
  import jax
  import numpy as np
  import orbax.checkpoint as ocp

  path = folder / 'orbax'
  handler = ocp.PyTreeCheckpointHandler(restore_concurrent_gb=2**20)
  tree = handler.metadata(path).tree
  args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
  handler.restore(path, args=ocp.args.PyTreeRestore(restore_args=args))


def disk(folder: pathlib.Path, scale: float) -> None:
  """Reads the safetensors from end to end, and keeps nothing."""
  del scale
  buffer = bytearray(2**24)
  for path in sorted((folder / 'safetensors').glob('*.safetensors')):
    with path.open('rb', buffering=0) as file:
      while file.readinto(buffer):
        pass


def init_orbax(folder: pathlib.Path, scale: float) -> None:
  _init(folder / 'orbax', scale)


def init_safetensors(folder: pathlib.Path, scale: float) -> None:
  _init(folder / 'safetensors', scale)


def _init(path: pathlib.Path, scale: float) -> None:
  """Makes the state of a run."""
  import jax
  from kauldron import kd

  from gemma4_lora import g4
  from tests.lib import training

  # LoRA leaves and Adam's too: at 4 MB, Kauldron's own choice, devices of one
  # machine would hold them, and a third of this model, eight times.
  fsdp = kd.sharding.FSDPSharding(min_size_to_shard_mb=0.03)
  trainer = training.make_trainer(
      g4.nn.LoRA(rank=16, model=model_of(scale)),
      path.parent / 'run',
      num_train_steps=1,
      checkpointer=None,
      trainstep=g4.train.TrainStep(),
      init_transform=g4.ckpts.SkipLoRA4(
          wrapped=g4.ckpts.PartialLoad(path=path)
      ),
      sharding=kd.sharding.ShardingStrategy(params=fsdp, opt_state=fsdp),
  )
  jax.block_until_ready(trainer.init_state())


def nothing(folder: pathlib.Path, scale: float) -> None:
  """Imports alone."""


_TASKS: dict[str, Callable[[pathlib.Path, float], None]] = {
    f.__name__: f
    for f in (write, nothing, orbax, disk, init_orbax, init_safetensors)
}


def measure(
    task: str, folder: pathlib.Path, *, scale: float, devices: int = 1
) -> Measured:
  """Returns what a task takes in a process of its own."""
  for path in folder.rglob('*'):
    if path.is_file():
      with path.open('rb') as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
  command = [sys.executable, '-m', 'tests.benchmarks.restore', task]
  command += [f'--folder={folder}', f'--scale={scale}', f'--devices={devices}']
  return measure_process(command)


def measure_process(command: list[str]) -> Measured:
  """Returns what a process takes; it prints its seconds."""
  with tempfile.TemporaryFile('w+') as out:
    process = subprocess.Popen(command, stdout=out, stderr=out)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    out.seek(0)
    text = out.read()
  if status:
    raise RuntimeError(f'{" ".join(command)} failed:\n{text[-4000:]}')
  seconds = text.rpartition(_SECONDS)[2].split()[0]
  return Measured(seconds=float(seconds), peak_gb=usage.ru_maxrss * 1024 / 1e9)


def table(folder: pathlib.Path, *, scale: float) -> str:
  """Writes the checkpoint, measures, and returns the table."""
  if not (folder / 'safetensors').exists():
    measure('write', folder, scale=scale)
  gb = sum(
      x.stat().st_size for x in (folder / 'safetensors').glob('*.safetensors')
  )
  gb /= 1e9
  rows = [f'| {gb:.2f} GB | seconds | / library | peak, GB | / checkpoint |']
  rows += ['|---|---|---|---|---|']
  base = None
  for name, task, devices in (
      ('imports', 'nothing', 1),
      ('Orbax, to the host', 'orbax', 1),
      ('init from Orbax, 1 device', 'init_orbax', 1),
      ('init from Orbax, 8 devices, FSDP', 'init_orbax', 8),
      ('safetensors: the disk', 'disk', 1),
      ('init from safetensors, 1 device', 'init_safetensors', 1),
      ('init from safetensors, 8 devices, FSDP', 'init_safetensors', 8),
  ):
    got = measure(task, folder, scale=scale, devices=devices)
    if task in ('orbax', 'disk'):
      base = got.seconds
    ratio = f'{got.seconds / base:.2f}' if base else '–'
    rows.append(
        f'| {name} | {got.seconds:.1f} | {ratio} | {got.peak_gb:.2f} |'
        f' {got.peak_gb / gb:.2f} |'
    )
    print(rows[-1], file=sys.stderr, flush=True)
  return '\n'.join(rows)


def _child(args: argparse.Namespace) -> None:
  import jax

  jax.config.update('jax_num_cpu_devices', args.devices)
  # Imports of all rows, and the start of the backend.
  from gemma import gm
  from kauldron import kd
  import orbax.checkpoint as ocp

  from gemma4_lora import g4
  from gemma4_lora.runs import _export

  for module in (gm.nn, gm.ckpts, kd.train, ocp.args, g4.train, _export):
    dir(module)
  jax.block_until_ready(jax.numpy.zeros(()))
  start = time.monotonic()
  _TASKS[args.task](args.folder, args.scale)
  print(_SECONDS, time.monotonic() - start)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('task', nargs='?', choices=list(_TASKS))
  parser.add_argument(
      '--folder', type=pathlib.Path, help='to keep the files in'
  )
  parser.add_argument(
      '--scale', type=float, default=0.43, help='1: E2B, 9.3 GB'
  )
  parser.add_argument('--devices', type=int, default=1)
  args = parser.parse_args()
  if args.task:
    _child(args)
  elif args.folder:
    print(table(args.folder, scale=args.scale))
  else:
    with tempfile.TemporaryDirectory() as folder:
      print(table(pathlib.Path(folder), scale=args.scale))


if __name__ == '__main__':
  main()
