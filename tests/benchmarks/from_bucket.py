"""Restoring from a bucket that is far, against tensorstore alone.

```sh
uv run --extra dev python -m tests.benchmarks.from_bucket
```

writes a checkpoint in E2B's proportions as Orbax and as safetensors, puts both
into an emulated bucket (`tests/lib/buckets.py`) with 40 ms of latency and 200 MB/s,
and prints for each, in turns,

* seconds that tensorstore takes to read the same bytes to the host, all at once:
  ranges of 8 MiB of safetensors, and of Orbax all arrays, decompressed;
* seconds of `g4.ckpts.PartialLoad` into the devices of a state without values;
* the peak of resident memory over that of a process that has only imported, from
  the bucket and from disk.

Each is a process of its own, forked from one that has imported all. Needs root or
user namespaces.
"""

import argparse
from collections.abc import Callable
import json
import pathlib
import statistics
import sys
import tempfile
import time

from tests.benchmarks import restore
from tests.benchmarks import worker
from tests.lib import buckets as buckets_lib

_LATENCY_S = 0.04
_BYTES_PER_S = 200e6
_RANGE_BYTES = 2**23
_FORMATS = ('safetensors', 'orbax')
_PRELOAD = ('tensorflow', 'gemma.gm', 'kauldron.kd', 'gemma4_lora.g4')


def safetensors_by_tensorstore(path: str) -> int:
  """Reads all files in ranges."""
  from etils import epath
  import tensorstore as ts

  store = ts.KvStore.open(f'{path}/').result()
  futures = []
  for file in epath.Path(path).glob('*.safetensors'):
    size = file.stat().length
    for start in range(0, size, _RANGE_BYTES):
      stop = min(start + _RANGE_BYTES, size)
      futures.append(store.read(file.name, byte_range=slice(start, stop)))
  return sum(len(x.result().value) for x in futures)


def orbax_by_tensorstore(path: str) -> int:
  """Reads and decompresses all arrays."""
  import tensorstore as ts

  base = {'driver': 'ocdbt', 'base': f'{path}/'}
  names = {
      key.decode().rpartition('/')[0]
      for key in ts.KvStore.open(base).result().list().result()
      if key.endswith(b'.zarray')
  }
  opened = [
      ts.open({'driver': 'zarr', 'kvstore': base | {'path': f'{x}/'}})
      for x in names
  ]
  reads = [x.result().read() for x in opened]
  return sum(x.result().nbytes for x in reads)


_ALONE: dict[str, Callable[[str], int]] = {
    'safetensors': safetensors_by_tensorstore,
    'orbax': orbax_by_tensorstore,
}


def measure(path: str, scale: float, out: pathlib.Path, is_ours: bool) -> None:
  """Is a process; writes what a restore took to a file.

  Args:
    path: Path of the checkpoint, whose name is its format.
    scale: See `restore.model_of`.
    out: The file.
    is_ours: Or by tensorstore.
  """
  import jax

  from gemma4_lora import g4
  from gemma4_lora.gemma4 import _upstream
  from tests.lib import states

  jax.config.update('jax_platforms', 'cpu')
  jax.block_until_ready(jax.numpy.zeros(()))
  alone = _ALONE[path.rpartition('/')[2]]
  transform = g4.ckpts.PartialLoad(path=path)
  state = states.wrap(_upstream.abstract_params(restore.model_of(scale)))
  before = worker.memory_mb()['now']
  worker.forget_peak()
  start, cpu = time.monotonic(), time.process_time()
  if is_ours:
    jax.block_until_ready(transform.transform(state))
  else:
    alone(path)
  seconds = time.monotonic() - start
  got = {
      'seconds': seconds,
      'cpu_s': time.process_time() - cpu,
      'peak_mb': worker.memory_mb()['peak'] - before,
  }
  out.write_text(json.dumps(got))


def table(folder: pathlib.Path, *, scale: float, rounds: int) -> str:
  """Writes the checkpoints, measures, and returns the table.

  Args:
    folder: For checkpoints, buckets and results.
    scale: See `restore.model_of`.
    rounds: How often each is measured, in turns.
  """
  if not (folder / 'safetensors').exists():
    restore.measure('write', folder, scale=scale)
  rows = [
      '| | GB | tensorstore, s | restore, s | ratio | peak over the checkpoint'
      ' | from disk |',
      '|---|---|---|---|---|---|---|',
  ]
  with buckets_lib.serve(folder / 'cloud') as buckets:
    url = buckets.make('base-models')
    for name in _FORMATS:
      buckets.upload(folder / name, f'{url}/{name}')

    def take(path, *, is_ours=True):
      out = folder / 'result.json'
      buckets.call(measure, path, scale, out, is_ours, preload=_PRELOAD)
      return json.loads(out.read_text())

    for name in _FORMATS:
      mb = worker.size_mb(folder / name)
      buckets.limit()
      disk = take(str(folder / name))
      buckets.limit(latency_s=_LATENCY_S, bytes_per_s=_BYTES_PER_S)
      alone, ours = [], []
      for _ in range(rounds):
        alone.append(take(f'{url}/{name}', is_ours=False))
        ours.append(take(f'{url}/{name}'))
        print(name, disk, alone[-1], ours[-1], file=sys.stderr, flush=True)
      seconds = [_median(x, 'seconds') for x in (alone, ours)]
      ratio = statistics.median(
          x['seconds'] / y['seconds'] for x, y in zip(ours, alone, strict=True)
      )
      rows.append(
          f'| {name} | {mb / 1e3:.2f} | {seconds[0]:.1f} | {seconds[1]:.1f} |'
          f' {ratio:.2f} | {_median(ours, "peak_mb") / mb:.2f} |'
          f' {disk["peak_mb"] / mb:.2f} |'
      )
  return '\n'.join(rows)


def _median(results: list[dict[str, float]], key: str) -> float:
  return statistics.median(x[key] for x in results)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
      '--folder', type=pathlib.Path, help='to keep the files in'
  )
  parser.add_argument('--scale', type=float, default=0.1, help='1: E2B, 9.3 GB')
  parser.add_argument('--rounds', type=int, default=3)
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    print(
        table(
            args.folder or pathlib.Path(folder),
            scale=args.scale,
            rounds=args.rounds,
        )
    )


if __name__ == '__main__':
  main()
