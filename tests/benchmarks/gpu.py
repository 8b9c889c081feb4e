"""E2B itself on one GPU of 80 GB or more, at several batches and lengths.

```sh
uv run --extra dev --extra cuda python -m tests.benchmarks --gpu
```

Random weights, bfloat16. Each cell is a process of its own, for a device
remembers its peak: tokens/s, the most memory in use, and model FLOPs utilisation:
what the step cannot do without (`Size.model_flops`), over the time and the chip's
published dense rate. What does not fit keeps its row.
"""

import dataclasses
import os
import sys
from typing import Any

from gemma4_lora.tpu import _chips
from tests.benchmarks import sizes
from tests.benchmarks import worker

BATCH_BY_LENGTH = ((1, 512), (4, 512), (16, 512), (8, 2048), (32, 2048))
BATCH_BY_LENGTH += ((4, 8192), (1, 32768))
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    'ours': ('ours', {}),
    "ours, remat='attention', attention='blockwise'": (
        'ours',
        {'remat': 'attention', 'attention': 'blockwise'},
    ),
    'by hand': ('by_hand', {}),
    'Kauldron, full logits': ('kauldron', {}),
}
HEADER = '| batch | way | tokens/s | peak, GiB | MFU |\n|---|---|---|---|---|'
_STEPS = 5


def row(size: sizes.Size, way: str, **environment: str) -> str:
  """Measures one way, at one size.

  Args:
    size: Of the model, and of the batch.
    way: Of `WAYS`.
    **environment: For the process; default: this one's.
  """
  name, settings = WAYS[way]
  command = [sys.executable, '-m', 'tests.benchmarks.worker']
  made = worker.Worker(
      [*command, name, size.to_json()], **(environment or dict(os.environ))
  )
  start = f'| {size.batch} x {size.length} | {way} |'
  try:
    made.ask('compile', **settings)
    made.ask('begin')
    seconds = made.ask('run', num=_STEPS)['seconds'] / _STEPS
    device = made.ask('device')
  except RuntimeError as e:
    if 'RESOURCE_EXHAUSTED' not in str(e):
      raise
    return f'{start} out of memory | – | – |'
  finally:
    made.close()
  tokens = size.batch * size.length / seconds
  peak = device['peak']
  peak = f'{peak / 2**30:.1f}' if peak else '–'
  rate = _chips.gpu(device['kind'], None).flops_per_s
  mfu = f'{size.model_flops / seconds / rate:.1%}' if rate else '–'
  return f'{start} {tokens:,.0f} | {peak} | {mfu} |'


def table(size: sizes.Size) -> str:
  """Measures all, and shows each row as it comes."""
  rows = [HEADER]
  for batch, length in BATCH_BY_LENGTH:
    for way in WAYS:
      at = dataclasses.replace(size, batch=batch, length=length)
      rows.append(row(at, way))
      print(rows[-1], file=sys.stderr, flush=True)
  return '\n'.join(rows)
