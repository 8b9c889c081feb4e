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


def row(size: sizes.Size, way: str, made: Any) -> str:
  """Measures one way, at one size.

  Args:
    size: Of the model, and of the batch.
    way: Of `WAYS`.
    made: The worker of that way.
  """
  _, settings = WAYS[way]
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
  tokens = size.batch * size.length / seconds
  peak = device['peak']
  peak = f'{peak / 2**30:.1f}' if peak else '–'
  used = utilisation(size, seconds, device['kind'])
  used = f'{used:.1%}' if used else '–'
  return f'{start} {tokens:,.0f} | {peak} | {used} |'


def utilisation(size: sizes.Size, seconds: float, kind: str) -> float | None:
  """Returns the part of the chip's rate that is used; None if not known.

  Args:
    size: Of the model, and of the batch.
    seconds: Of a step.
    kind: The GPU, as jax names it.
  """
  rate = _chips.gpu(kind, None).flops_per_s
  return size.model_flops / seconds / rate if rate else None


def table(size: sizes.Size) -> str:
  """Measures all, and shows each row as it comes."""
  rows = [HEADER]
  for batch, length in BATCH_BY_LENGTH:
    for way, (name, _) in WAYS.items():
      at = dataclasses.replace(size, batch=batch, length=length)
      command = [sys.executable, '-m', 'tests.benchmarks.worker', name]
      made = worker.Worker([*command, at.to_json()], **os.environ)
      rows.append(row(at, way, made))
      made.close()
      print(rows[-1], file=sys.stderr, flush=True)
  return '\n'.join(rows)
