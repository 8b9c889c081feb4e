"""What a quantised base costs: error of the logits, and time of a step.

```sh
uv run --extra dev python -m tests.benchmarks.quantized
```

* Error: of the tiny models of `tests/testdata/hf`, in float32: root mean square
  of the logits' difference from those of the base as it is, over that of the
  logits. Linears, experts, tables: all is quantised. Groups of 32, or of the
  largest power of two that divides an input.
* Step: `sizes.CPU` in bfloat16, LoRA of its rank on all text linears, Adam. Both
  models take steps in turns, in one process; the ratio is the median over rounds.
"""

import argparse
import dataclasses
import statistics
import time

from gemma import peft
import jax
import numpy as np
import optax

from gemma4_lora import g4
from gemma4_lora.nn import _quantized
from tests import hf_reference
from tests.benchmarks import by_hand
from tests.benchmarks import sizes
from tests.benchmarks import steps

FIXTURES = ('dense', 'e', 'moe')
FORMATS = ('int8', 'int4', 'nf4')
_GROUP = 32
PARTS = ('error', 'step')


def errors(fixture: str) -> dict[str, float]:
  """Returns the relative error of the logits, by format."""
  reference = hf_reference.load(fixture)
  lora = g4.nn.LoRA(rank=1, targets='q', model=reference.model, enabled=False)
  fresh = lora.init(jax.random.key(0), reference.tokens)['params']
  params = peft.merge_params(reference.params, peft.split_params(fresh).lora)

  def logits(model, params):
    output = model.apply({'params': params}, reference.tokens)
    return np.asarray(output.logits, np.float64)

  want = logits(lora, params)
  found = {}
  for name in FORMATS:
    model = lora.clone(quantize=_fitting(lora, name))
    got = logits(model, _quantized.quantize(params, model.quantized))
    error = np.mean(np.square(got - want)) / np.mean(np.square(want))
    found[name] = float(np.sqrt(error))
  return found


def _fitting(model: g4.nn.LoRA, name: str):
  """Returns formats of one kind whose groups divide all inputs."""
  if name == 'int8':
    return name
  cls = {'int4': g4.quant.Int4, 'nf4': g4.quant.NF4}[name]
  size, parts = _GROUP, []
  while size:
    for select in ('all',):
      try:
        model.clone(quantize=[*parts, cls(select, group_size=size)])
        return [*parts, cls(select, group_size=size)]
      except ValueError:
        size //= 2
  raise ValueError(f'no groups for {name}')


def seconds(size: sizes.Size, *, rounds: int) -> dict[str, list[float]]:
  """Returns times of a step, by format; `bfloat16` is the base as it is."""
  size = dataclasses.replace(size, dtype='bfloat16')
  optimizer = optax.adam(1e-3)
  batch = steps.batches(size)
  run, states, bases = {}, {}, {}
  for name in ('bfloat16', *FORMATS):
    quantize = None if name == 'bfloat16' else name
    model = g4.nn.LoRA(rank=size.rank, model=size.model(), quantize=quantize)
    plain = jax.eval_shape(
        model.clone(quantize=None).init, jax.random.key(0), batch['input']
    )['params']
    params = _quantized.quantize(steps.fill(plain), model.quantized)
    bases[name], lora = peft.split_params(params)
    states[name] = lora, optimizer.init(lora)
    run[name] = by_hand.make_step(model, optimizer)

  def once(name):
    start = time.perf_counter()
    states[name], loss = run[name](states[name], bases[name], batch)
    jax.block_until_ready(loss)
    return time.perf_counter() - start

  for name in run:  # Compiles.
    once(name)
  found = {name: [] for name in run}
  for i in range(rounds):
    names = list(run)
    for name in names[i % len(names) :] + names[: i % len(names)]:
      found[name].append(once(name))
  return found


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--only', nargs='+', choices=PARTS, default=PARTS)
  parser.add_argument(
      '--tiny', action='store_true', help='to see whether it runs'
  )
  args = parser.parse_args()
  if 'error' in args.only:
    print(f'| error of the logits | {" | ".join(FORMATS)} |')
    print('|---' * (len(FORMATS) + 1) + '|')
    for fixture in FIXTURES:
      found = errors(fixture)
      cells = ' | '.join(f'{found[x]:.2%}' for x in FORMATS)
      print(f'| {fixture} | {cells} |', flush=True)
  if 'step' in args.only:
    size = sizes.TINY if args.tiny else sizes.CPU
    found = seconds(size, rounds=args.rounds)
    base = found['bfloat16']
    for name, times in found.items():
      ratios = [x / y for x, y in zip(times, base, strict=True)]
      print(
          f'| step, {name} | {statistics.median(times):.3g} s'
          f' | {statistics.median(ratios):.2f} |'
      )


if __name__ == '__main__':
  main()
